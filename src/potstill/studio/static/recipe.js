// The new run's page: keeps form and text in step through the server, sends files, shows the plan.
// The text is the one truth; every answer of the server brings it anew.

import { ask, later, send } from "./common.js";

const text = document.getElementById("yaml");
const form = document.getElementById("form");
const general = document.getElementById("general");
const plan = document.getElementById("plan");
const files = document.getElementById("files");
const go = document.getElementById("go");
const why = document.getElementById("why");
let turn = Promise.resolve(); // changes go one after the other: each needs the text of the one before
let planning = null;
let mistaken = false; // whether the recipe is wrong, whatever a plan says that was asked for before

function inTurn(work) {
  turn = turn.then(work, work);
  return turn;
}

/** Show what is wrong: at its field, else above the form. */
function showMistakes(mistakes, others) {
  for (const place of form.querySelectorAll("[data-mistake]")) {
    const wrong = mistakes[place.dataset.mistake] || "";
    place.textContent = wrong;
    const control = form.querySelector(`[data-field="${CSS.escape(place.dataset.mistake)}"]`);
    if (wrong) {
      control.setAttribute("aria-invalid", "true");
      control.closest("details")?.setAttribute("open", "");
    } else control.removeAttribute("aria-invalid");
  }
  general.replaceChildren(
    ...others.map((words) => Object.assign(document.createElement("p"), { className: "note mistake", textContent: words })),
  );
  settle(Object.keys(mistakes).length + others.length);
}

/** Start and the plan are for a recipe that is right. */
function settle(count) {
  mistaken = count > 0;
  go.disabled = mistaken;
  why.textContent = count ? `${count} thing${count > 1 ? "s" : ""} to mend first` : "";
  if (count) {
    planning?.abort();
    plan.classList.remove("busy");
    plan.innerHTML = '<p class="small">The plan comes when the recipe is right.</p>';
  } else showPlan();
}

function showForm(html) {
  const open = [...form.querySelectorAll("details[open]")].map((one) => one.id);
  form.innerHTML = html;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
}

function refused(error) {
  if (error.name === "AbortError") return;
  general.innerHTML = error.html || "";
  mistaken = go.disabled = true;
  planning?.abort();
  plan.classList.remove("busy");
}

const showPlan = later(async () => {
  planning?.abort();
  if (mistaken) return;
  planning = new AbortController();
  plan.classList.add("busy");
  try {
    const answer = await ask("/new/plan", { yaml: text.value }, planning.signal);
    plan.innerHTML = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") return;
    plan.innerHTML = error.html;
  }
  plan.classList.remove("busy");
  letStart();
}, 500);

/** What the plan names as in the way would end the run at once. Too small a machine is for the user
    to judge. */
function letStart() {
  if (mistaken) return;
  const stands = document.getElementById("stands")?.dataset;
  const judged = document.getElementById("anyway")?.checked ? Number(stands.machine) : 0;
  go.disabled = stands ? Number(stands.count) > judged : false;
  why.textContent = go.disabled ? "The plan says what to mend first" : "";
}
plan.addEventListener("change", letStart);
plan.addEventListener("click", (event) => event.target.closest("[data-again]") && showPlan());

form.addEventListener("change", (event) => {
  const control = event.target.closest("[data-field]");
  if (!control) return;
  inTurn(async () => {
    try {
      const answer = await ask("/new/set", { yaml: text.value, field: control.dataset.field, text: control.value });
      const said = await answer.json();
      text.value = said.yaml;
      if (["task", "generate.teacher"].includes(control.dataset.field)) await readText();
      else showMistakes(said.mistakes, said.general);
    } catch (error) {
      refused(error);
    }
  });
});

async function readText() {
  try {
    const said = await (await ask("/new/read", { yaml: text.value })).json();
    showForm(said.form);
    showMistakes(said.mistakes, said.general);
  } catch (error) {
    refused(error);
  }
}
text.addEventListener("input", later(() => inTurn(readText), 400));

form.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-try]");
  if (!button) return;
  const place = form.querySelector("[data-tried]");
  button.disabled = true;
  place.innerHTML = '<p class="small" role="status">Asking …</p>';
  try {
    place.innerHTML = await (await ask("/new/try", { yaml: text.value })).text();
  } catch (error) {
    place.innerHTML = error.html;
  }
  button.disabled = false;
});

async function useSources(add, drop) {
  try {
    const said = await (await ask("/new/sources", { yaml: text.value, add, drop })).json();
    text.value = said.yaml;
    showForm(said.form);
    showMistakes(said.mistakes, said.general);
  } catch (error) {
    refused(error);
  }
}

function listed(name) {
  const line = document.createElement("li");
  line.innerHTML = "<span></span><span></span>";
  line.children[0].textContent = name;
  files.append(line);
  return line;
}

async function take(file) {
  const line = listed(file.name);
  const say = (words) => (line.children[1].textContent = words);
  const limit = Number(choose.dataset.largest);
  if (file.size > limit) {
    line.classList.add("refused");
    line.insertAdjacentHTML("beforeend", '<span class="bad">This file is too large for the page. Copy it into documents/ yourself.</span>');
    return;
  }
  say("0 %");
  try {
    const said = await send(`/files?name=${encodeURIComponent(file.name)}`, file, (share) => say(share < 100 ? `${share} %` : "checking"));
    line.children[0].textContent = said.source;
    say(said.size);
    line.insertAdjacentHTML("beforeend", '<button class="plain" type="button">Leave out</button>');
    line.querySelector("button").onclick = () => {
      line.remove();
      inTurn(() => useSources([], [said.source]));
    };
    await inTurn(() => useSources([said.source], []));
  } catch (error) {
    say("");
    const words = document.createElement("div");
    words.className = "bad";
    words.innerHTML = error.html || "It could not be sent.";
    line.append(words);
  }
}

async function takeAll(chosen) {
  for (const file of chosen) await take(file);
}

const drop = document.getElementById("drop");
const choose = document.getElementById("choose");
function takeChosen() {
  takeAll([...choose.files]);
  choose.value = "";
}
choose.addEventListener("change", takeChosen);
for (const kind of ["dragenter", "dragover"])
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  takeAll([...event.dataTransfer.files]);
});
// A file dropped beside the box must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("click", (event) => {
  const source = event.target.closest("[data-use]")?.dataset.use;
  if (source) inTurn(() => useSources([source], []));
});
document.getElementById("base").addEventListener("change", (event) => {
  const query = new URLSearchParams([event.target.value.split("=")]);
  // Whoever has put files of their own into this recipe wants them in the next one too.
  const sources = form.querySelector('[data-field="ingest.sources"]')?.value.split("\n") || [];
  for (const one of sources) query.append("use", one);
  location.href = `/new?${query}`;
});
document.getElementById("start").addEventListener("submit", () => {
  go.textContent = "Starting …";
  setTimeout(() => (go.disabled = true));
});
/** Whether a control is no longer as the server sent it. */
function touched(control) {
  if (!control.options) return control.value !== control.defaultValue;
  const given = [...control.options].findIndex((one) => one.defaultSelected);
  return control.selectedIndex !== Math.max(given, 0);
}

// A browser that comes back to the page may bring the text that was typed, and the form of before;
// whoever is faster than this script has changed a field or chosen files already.
if (text.value !== text.defaultValue) inTurn(readText);
else {
  settle(form.querySelectorAll("[data-mistake]:not(:empty)").length + general.childElementCount);
  for (const control of [...form.querySelectorAll("[data-field]")].filter(touched))
    control.dispatchEvent(new Event("change", { bubbles: true }));
}
takeChosen();
