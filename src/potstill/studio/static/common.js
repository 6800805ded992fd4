// What the studio's scripts share: asking the server with the form's secret, and saying what it said.

const secret = document.querySelector('meta[name="form"]').content;

/** POST JSON; the answer as the server sends it. Throws an Error whose `html` says what is wrong. */
export async function ask(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Form": secret },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw problem("<p><b>The studio does not answer.</b></p><p>It may have been closed. Runs go on; start it again with: potstill studio</p>");
  }
  if (!answer.ok) throw problem(await answer.text(), true);
  return answer;
}

/** Send a form as its button would; throws as `ask` does. */
export async function post(form, button) {
  const body = new URLSearchParams(new FormData(form, button));
  let answer;
  try {
    answer = await fetch(form.getAttribute("action"), { method: "POST", headers: { "X-Form": secret }, body });
  } catch {
    throw problem("<p><b>The studio does not answer.</b></p><p>It may have been closed. Start it again with: potstill studio</p>");
  }
  if (!answer.ok) throw problem(await answer.text(), true);
  return answer;
}

function problem(html, whole) {
  const error = new Error("refused");
  error.html = whole ? html : `<div class="problem" role="alert">${html}</div>`;
  return error;
}

/** Send a file with its progress in percent; resolves to the server's JSON, rejects with `html`. */
export function send(path, file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("X-Form", secret);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => progress(Math.round((100 * event.loaded) / (event.total || 1)));
    request.onload = () =>
      request.status === 200 ? resolve(JSON.parse(request.responseText)) : reject(problem(request.responseText, true));
    request.onerror = () => reject(problem("<p><b>The file did not arrive.</b></p><p>Drop it once more; if the studio was closed, open it again first.</p>"));
    request.send(file);
  });
}

/** Enter sends the form; with Shift it begins a line. */
export function sendByEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

/** Call `work` once, when nothing has asked for it for `pause` milliseconds. */
export function later(work, pause) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), pause);
  };
}
