// The page of a student that marks answers: one question at a time, the newest answer first.

import { ask, sendByEnter } from "./common.js";

const form = document.getElementById("marks");
const question = document.getElementById("question");
const status = document.getElementById("status");
const button = document.getElementById("ask");
const exchanges = document.getElementById("exchanges");

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text) {
    status.textContent = "Write a question first.";
    return question.focus();
  }
  const exchange = Object.assign(document.createElement("section"), { className: "exchange" });
  const asked = Object.assign(document.createElement("p"), { className: "asked", textContent: text });
  const answer = document.createElement("div");
  exchange.append(asked, answer);
  button.disabled = true;
  status.textContent = "The student is reading …";
  try {
    const found = await ask(form.dataset.to, { question: text, text: document.getElementById("text").value });
    answer.innerHTML = await found.text();
  } catch (error) {
    answer.innerHTML = error.html;
  }
  exchanges.prepend(exchange);
  button.disabled = false;
  status.textContent = "";
  question.select();
});

if (form) sendByEnter(question, form);
