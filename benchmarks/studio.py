"""Measures how long the studio takes to open, and its largest pages.

    python benchmarks/studio.py [--rows 50000] [--events 100000] [--rounds 3]

A project is made with a run of so many rows and events. The studio is started as a process, as
`potstill studio` is; a page is asked for over HTTP, each round from a studio that was just started,
so that nothing of the run was read before. Prints one JSON object a line; all else goes to
standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
from figures import figure

from potstill.core.store import Store
from potstill.records import Chunk, Example, Provenance, Span, Turn

PASSAGE = "The warden locks the pump house at ten and writes the time into the log. " * 12


def main() -> None:
    """Make the project, open it a few times, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        make_rows(project, options.rows)
        make_events(project, options.events)
        rounds = [measure(project) for _ in range(options.rounds)]
    how = f"median of {options.rounds}, each of a studio just started"
    for name, goal, what in (
        ("from the command to the first page", 3.0, "its address followed at once"),
        ("a page of rows", 1.0, f"{options.rows} rows, {len(PASSAGE)} characters of passage each"),
        ("rows that hold a word", 1.0, f"all {options.rows} rows searched"),
        ("a run's page", 1.0, f"{options.events} events"),
        ("the same page again", 1.0, "only what is new is read"),
    ):
        value = statistics.median(one[name] for one in rounds)
        figure(name, round(value, 3), "s", goal, value < goal, f"{what}; {how}")


def measure(project: Path) -> dict[str, float]:
    """Seconds to each page, of one studio."""
    found = {}
    began = time.monotonic()
    command = [sys.executable, "-m", "potstill.cli", "studio", "--no-browser", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--project", str(project)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address
        with httpx2.Client(follow_redirects=True, timeout=120, trust_env=False) as client:
            client.get(address[0]).raise_for_status()
            found["from the command to the first page"] = time.monotonic() - began
            base = address[0].partition("/?")[0]
            for name, path in (
                ("a page of rows", "/runs/rows/data"),
                ("rows that hold a word", "/runs/rows/data?q=question+4999"),
                ("a run's page", "/runs/events"),
                ("the same page again", "/runs/events"),
            ):
                asked = time.monotonic()
                client.get(base + path).raise_for_status()
                found[name] = time.monotonic() - asked
    finally:
        process.terminate()
        process.wait()
    return found


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
