// The chat page: asks the chosen models one after the other and shows their answers side by side; a
// blind vote on two of them; where an answer parts from the teacher.

import { ask, sendByEnter } from "./common.js";

const talk = document.getElementById("talk");
const question = document.getElementById("question");
const status = document.getElementById("status");
const stop = document.getElementById("stop");
const button = document.getElementById("ask");
const exchanges = document.getElementById("exchanges");
const NOTHING = "(no answer)";
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

/** What is put below an answer when its button is pressed. */
function offer(place, word, work) {
  const button = Object.assign(made("button", "quiet", word), { type: "button" });
  const result = made("div", "");
  button.onclick = async () => {
    button.disabled = true;
    result.innerHTML = '<p class="small" role="status">Both models read the answer …</p>';
    try {
      result.innerHTML = await work();
      button.remove();
    } catch (error) {
      result.innerHTML = error.html;
      button.disabled = false;
    }
  };
  place.append(button, result);
}

function offerColours(place, answer, settings) {
  const { question: asked, passages } = settings;
  offer(place, "Where it parts from its teacher", async () => {
    const found = await ask(`${talk.dataset.run}/disagree`, { question: asked, answer, passages });
    return found.text();
  });
}

/** The vote on two hidden models; afterwards they are named. */
function offerVote(exchange, pair, settings) {
  const votes = made("div", "actions");
  const result = made("p", "small");
  result.setAttribute("role", "status");
  for (const [winner, word] of [["A", "A is better"], ["tie", "Equal"], ["B", "B is better"]]) {
    const button = Object.assign(made("button", "quiet", word), { type: "button" });
    button.onclick = async () => {
      for (const one of votes.children) one.disabled = true;
      try {
        const said = await (await ask(`${talk.dataset.run}/vote`, { pair, winner })).json();
        exchange.querySelectorAll("h3").forEach((one, place) => (one.textContent = `${one.textContent}: ${said.names[place]}`));
        result.textContent = said.said;
        votes.remove();
        exchange.querySelectorAll(".columns > div").forEach((place, number) => {
          const answer = place.querySelector(".said").textContent;
          if (said.names[number] !== "teacher" && answer !== NOTHING) offerColours(place, answer, settings);
        });
      } catch (error) {
        result.innerHTML = error.html;
        for (const one of votes.children) one.disabled = false;
      }
    };
    votes.append(button);
  }
  exchange.append(votes, result);
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
    if (said.textContent.trim() && !settings.pair && model !== "teacher") offerColours(place, said.textContent, settings);
    if (!said.textContent.trim() && !cited.querySelector(".problem")) said.textContent = NOTHING;
  } catch (error) {
    if (error.name === "AbortError") figures.textContent = "stopped";
    else cited.innerHTML = error.html || '<div class="problem"><p><b>The answer broke off.</b></p><p>Ask once more.</p></div>';
  }
}

talk?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  const models = [...talk.querySelectorAll('[name="model"]:checked')];
  if (!text) {
    status.textContent = "Write a question first.";
    return question.focus();
  }
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
  const blind = document.getElementById("blind")?.checked;
  let asked = models.map((one) => [one.value, one.dataset.name]);
  if (blind) {
    if (asked.length !== 2) {
      status.textContent = "A blind vote needs two models: choose two below.";
      return;
    }
    try {
      const said = await ask(`${talk.dataset.run}/blind`, { question: text, models: asked.map((one) => one[0]) });
      settings.pair = (await said.json()).pair;
      asked = [["A", "A"], ["B", "B"]];
    } catch (error) {
      exchanges.insertAdjacentHTML("afterbegin", error.html);
      return;
    }
  }
  const exchange = made("section", "exchange");
  const columns = made("div", "columns");
  exchange.append(made("p", "asked", text), columns);
  exchanges.prepend(exchange);
  asking = new AbortController();
  button.disabled = true;
  stop.hidden = false;
  for (const [model, name] of asked) {
    if (asking.signal.aborted) break;
    const place = made("div", "");
    columns.append(place);
    await askOne(model, name, place, settings, asking.signal);
  }
  if (blind && !asking.signal.aborted) offerVote(exchange, settings.pair, settings);
  button.disabled = false;
  stop.hidden = true;
  status.textContent = "";
  question.select();
});

stop?.addEventListener("click", () => asking?.abort());
if (talk) sendByEnter(question, talk);
