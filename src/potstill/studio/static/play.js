// The chat page: asks the chosen models one after the other and shows their answers side by side.

import { ask } from "./common.js";

const talk = document.getElementById("talk");
const question = document.getElementById("question");
const status = document.getElementById("status");
const stop = document.getElementById("stop");
const button = document.getElementById("ask");
const exchanges = document.getElementById("exchanges");
let asking = null;

function made(kind, name, text = "") {
  return Object.assign(document.createElement(kind), { className: name, textContent: text });
}

/** Each event of a stream of server-sent events. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

async function askOne(model, name, place, settings, signal) {
  const said = made("p", "said");
  const figures = made("p", "small");
  const cited = made("div", "");
  place.append(made("h3", "", name), said, figures, cited);
  status.textContent = `${name} is reading …`;
  try {
    const answer = await ask(talk.dataset.to, { ...settings, model }, signal);
    for await (const event of events(answer)) {
      if (event.piece) {
        said.append(event.piece);
        status.textContent = `${name} is writing …`;
      }
      if (event.done) figures.textContent = event.done;
      if (event.passage) cited.innerHTML = event.passage;
      if (event.problem) cited.innerHTML = event.problem;
    }
    if (!said.textContent.trim() && !cited.querySelector(".problem")) said.textContent = "(no answer)";
  } catch (error) {
    if (error.name === "AbortError") figures.textContent = "stopped";
    else cited.innerHTML = error.html || '<div class="problem"><p><b>The answer broke off.</b></p><p>Ask once more.</p></div>';
  }
}

talk?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  const models = [...talk.querySelectorAll('[name="model"]:checked')];
  if (!text) return question.focus();
  if (!models.length) {
    status.textContent = "Choose at least one model below.";
    return;
  }
  const value = (id) => Number(document.getElementById(id).value);
  const settings = {
    question: text,
    passages: document.getElementById("passages").checked,
    temperature: value("temperature"),
    top_p: value("top_p"),
    max_tokens: value("max_tokens"),
    seed: value("seed"),
  };
  const exchange = made("section", "exchange");
  const columns = made("div", "columns");
  exchange.append(made("p", "asked", text), columns);
  exchanges.prepend(exchange);
  asking = new AbortController();
  button.disabled = true;
  stop.hidden = false;
  for (const model of models) {
    if (asking.signal.aborted) break;
    const place = made("div", "");
    columns.append(place);
    await askOne(model.value, model.dataset.name, place, settings, asking.signal);
  }
  button.disabled = false;
  stop.hidden = true;
  status.textContent = "";
  question.select();
});

stop?.addEventListener("click", () => asking?.abort());
question?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    talk.requestSubmit();
  }
});
