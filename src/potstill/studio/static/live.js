// A run's page while the run goes on: takes over the parts that the server sends anew.
// The connection comes back by itself, so a closed or restarted studio shows no stale page as live.

const page = document.getElementById("live");

function show(name, html) {
  for (const place of document.querySelectorAll(`[data-live="${name}"]`)) {
    // A part that somebody is using stays until they are done with it.
    if (name !== "failure" && place.contains(document.activeElement) && document.activeElement.tagName === "BUTTON") continue;
    const log = place.querySelector(".log");
    const atEnd = !log || log.scrollTop + log.clientHeight > log.scrollHeight - 30;
    const before = log?.scrollTop;
    place.innerHTML = html;
    const now = place.querySelector(".log");
    if (now) now.scrollTop = atEnd ? now.scrollHeight : before;
  }
}

for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;

if (page.dataset.running === "true") {
  const source = new EventSource(page.dataset.source);
  const lost = document.getElementById("lost");
  const away = (gone) => {
    lost.hidden = !gone;
    page.querySelector('[data-live="actions"]').inert = gone; // nobody would take what is pressed
  };
  source.onerror = () => away(true); // the browser tries again by itself
  source.onmessage = (event) => {
    away(false);
    const said = JSON.parse(event.data);
    for (const [name, html] of Object.entries(said.parts)) show(name, html);
    if (said.state) for (const one of document.querySelectorAll('p[data-live="state"]')) one.className = `state ${said.state}`;
    if (said.over) source.close();
  };
}
