// Home: files dropped anywhere on the page go to the project's documents, and on to a new run; other
// projects are opened at the address that the studio gives for them.

import { post, send } from "./common.js";

const place = document.getElementById("dropped");
const ways = document.querySelector("[data-own]");

for (const kind of ["dragenter", "dragover"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    ways?.classList.add("over");
  });
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => ways?.classList.remove("over"));

document.addEventListener("drop", async (event) => {
  event.preventDefault();
  const files = [...event.dataTransfer.files];
  const problems = [];
  for (const [number, file] of files.entries()) {
    const say = (share) => (place.textContent = `Taking ${file.name} (${number + 1} of ${files.length}): ${share < 100 ? `${share} %` : "checking"}`);
    say(0);
    try {
      await send(`/files?name=${encodeURIComponent(file.name)}`, file, say);
    } catch (error) {
      problems.push(error.html);
    }
  }
  if (files.length && !problems.length) location.href = "/new?own=1";
  else if (files.length) {
    place.innerHTML = problems.join("");
    if (files.length > problems.length) place.insertAdjacentHTML("beforeend", '<p><a class="button" href="/new?own=1">Go on with the others</a></p>');
  } else place.textContent = "";
});

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("[data-project]");
  if (!form) return;
  event.preventDefault();
  try {
    location.href = (await (await post(form, event.submitter)).json()).address;
  } catch (error) {
    form.querySelector("[data-problem]").innerHTML = error.html;
  }
});
