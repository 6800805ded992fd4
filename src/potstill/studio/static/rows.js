// The data page: opens a row in its place, finds anew when a choice changes, and says in place why a
// decision about a row cannot be taken.

import { post } from "./common.js";

const list = document.querySelector("[data-rows]");

list?.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-row]");
  if (!button) return;
  const detail = button.nextElementSibling;
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  detail.hidden = open;
  if (open || detail.dataset.loaded) return;
  try {
    const answer = await fetch(list.dataset.rows + button.dataset.row, { headers: { "X-Form": "" } });
    detail.innerHTML = await answer.text();
    if (answer.ok) detail.dataset.loaded = "yes";
    detail.querySelector("mark")?.scrollIntoView({ block: "nearest" });
  } catch {
    detail.innerHTML = '<div class="problem"><p><b>The studio does not answer.</b></p><p>Start it again with: potstill studio</p></div>';
  }
});

// A page that cannot be drawn says so instead of showing a broken picture.
document.addEventListener(
  "error",
  (event) => {
    if (!event.target.matches?.("img.sheet")) return;
    const words = Object.assign(document.createElement("p"), { className: "small", textContent: "The page cannot be drawn; the file may have changed since it was read." });
    event.target.closest("a").replaceWith(words);
  },
  true,
);

const filters = document.getElementById("filters");
for (const control of filters?.querySelectorAll("select") ?? [])
  control.addEventListener("change", () => {
    if (control.id === "split") document.getElementById("word").value = "";
    filters.requestSubmit();
  });

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("[data-decide]");
  if (!form) return;
  event.preventDefault();
  const place = form.querySelector("[data-problem]") ?? form;
  try {
    await post(form, event.submitter);
    const said = event.submitter?.dataset.said;
    if (said) sessionStorage.setItem("said", said);
    location.reload();
  } catch (error) {
    if (place === form) form.insertAdjacentHTML("beforeend", error.html);
    else place.innerHTML = error.html;
  }
});

// What was just decided, once the page shows it.
const said = sessionStorage.getItem("said");
if (said) {
  sessionStorage.removeItem("said");
  const words = Object.assign(document.createElement("p"), { className: "said-now", textContent: said });
  words.setAttribute("role", "status");
  document.body.append(words);
  setTimeout(() => words.remove(), 8000);
}
