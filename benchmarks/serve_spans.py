"""Measures how a served student that marks answers should read: how many passages, by which rule,
how many at once.

    python benchmarks/serve_spans.py RUN/export [--file model-int8.onnx] [--questions FILE.json]

Passages and questions: a file in SQuAD's form; default the sample handbook's 246 questions, over
all of its paragraphs. Each question is answered from the k passages that its words find, and the
span is chosen by three rules: the likeliest against no answer in its own passage (the service's),
the likeliest in its own passage, the largest sum of logits; EM, F1 and the paired differences to
the first. The speed: questions a second of several threads with one processor thread each, against
one at a time with all of them, and of windows in batches against one by one, with what that does to
the answers. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import figure

from potstill import sample
from potstill.core.machine import usable_cores
from potstill.core.scoring import bootstrap, exact_match, paired_bootstrap, token_f1
from potstill.models.spans.decoding import Scored, best, margin, scored
from potstill.models.spans.model import collate
from potstill.models.spans.reader import SpanReader
from potstill.models.spans.windows import Windows
from potstill.records import Chunk
from potstill.serve.retrieval import PassageIndex

MOST = 5
SEED = 0
SPEED_QUESTIONS = 24
ALWAYS = None  # no threshold: every rule has to choose a span


def loaded(file: Path) -> tuple[list[Chunk], list[tuple[str, list[str], str]]]:
    """The paragraphs, and (question, answers, its paragraph's id)."""
    chunks, asked = [], []
    for article in json.loads(file.read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            text, name = paragraph["context"], f"p{len(chunks)}"
            where = {"id": name, "document": "d", "source": file.name, "start": 0}
            chunks.append(
                Chunk.model_validate({**where, "end": len(text), "tokens": 1, "text": text})
            )
            for one in paragraph["qas"]:
                if one["answers"]:
                    asked.append((one["question"], [a["text"] for a in one["answers"]], name))
    return chunks, asked


def raw(windows: Windows, logits: Any) -> float:
    """The largest sum of a start's and an end's logit, without what it is compared with."""
    return max(
        float(
            (starts[w.at : w.at + w.count, None] + ends[None, w.at : w.at + w.count]).triu().max()
        )
        for w, (starts, ends) in zip(windows.windows, logits, strict=True)
        if w.count
    )


def rules(reader: SpanReader, chunks: list[Chunk], asked: list[tuple[str, list[str], str]]) -> None:
    """EM and F1 by rule and number of passages."""
    index = PassageIndex(chunks)
    table: dict[tuple[str, int], list[tuple[float, float]]] = {}
    found_at: list[int] = []
    for number, (question, golds, own) in enumerate(asked):
        found = index.search(question, MOST)
        found_at.append(next((n for n, one in enumerate(found) if one.id == own), MOST))
        told: list[tuple[str, Scored, Windows, dict[str, float]]] = []
        for chunk in found:
            windows = reader.windows(question, chunk.text)
            logits = reader.backend.logits(windows.windows)
            told_of = scored(windows, logits, reader.settings.max_answer_tokens)
            worth = {
                "margin": margin(told_of),
                "probability": float(told_of.spans.max()),
                "logits": raw(windows, logits),
            }
            told.append((chunk.text, told_of, windows, worth))
        for k in (1, 3, MOST):
            for rule in ("margin", "probability", "logits"):
                some = told[:k]
                order = [one[3][rule] for one in some]
                said = ""
                if some:
                    text, told_of, windows, _ = some[order.index(max(order))]
                    said = best(windows, text, told_of, ALWAYS).answer
                table.setdefault((rule, k), []).append(
                    (exact_match(said, golds), token_f1(said, golds))
                )
        if number % 50 == 49:
            print(f"{number + 1} questions", file=sys.stderr)
    for k in (1, 3, MOST):
        share = sum(place < k for place in found_at) / len(found_at)
        figure("spans_passage_found", round(share, 3), "share", None, True, f"among the first {k}")
    for (rule, k), scores in table.items():
        em, f1 = (bootstrap(np.array([one[n] for one in scores]), SEED) for n in (0, 1))
        how = f"{len(scores)} questions, {k} passages; EM {em.value:.3f}, F1's interval " + (
            f"{f1.low:.3f} to {f1.high:.3f}"
        )
        figure(f"spans_f1_{rule}_{k}", round(f1.value, 3), "F1", None, True, how)
    for other, k in (("probability", 3), ("logits", 3)):
        mine, theirs = (np.array([f for _, f in table[rule, k]]) for rule in ("margin", other))
        gain = paired_bootstrap(mine, theirs, SEED)
        how = f"paired, {k} passages: {gain.low:.3f} to {gain.high:.3f}"
        name = f"spans_margin_over_{other}"
        figure(name, round(gain.value, 3), "F1", 0.0, gain.high >= 0.0, how)


def speed(
    folder: Path, file: Path, chunks: list[Chunk], asked: list[tuple[str, list[str], str]]
) -> None:
    """Questions a second, three passages each; and batches of windows."""
    cores = usable_cores()
    index = PassageIndex(chunks)
    jobs = [
        (question, [one.text for one in index.search(question, 3)])
        for question, _, _ in asked[:SPEED_QUESTIONS]
    ]
    rates: dict[str, list[float]] = {}
    ways = {"together": (cores, 1), "one at a time": (1, cores)}
    readers = {
        name: SpanReader(folder, onnx=file, threads=threads) for name, (_, threads) in ways.items()
    }
    for turn in range(4):
        for name, (at_once, _) in ways.items():
            with ThreadPoolExecutor(at_once) as pool:
                began = time.perf_counter()
                list(pool.map(lambda job, r=readers[name]: r.answer_from(*job), jobs))
                if turn:  # the first warms
                    took = time.perf_counter() - began
                    rates.setdefault(name, []).append(len(jobs) / took)
    middle = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    how = f"{file.name}, {len(jobs)} questions of 3 passages, {cores} cores, 3 rounds in turn"
    for name, rate in middle.items():
        figure(f"spans_{name.replace(' ', '_')}", round(rate, 2), "questions/s", None, True, how)
    gain = middle["together"] / middle["one at a time"]
    figure("spans_together_over_one_at_a_time", round(gain, 2), "ratio", 1.0, gain >= 1.0, how)
    batches(readers["together"], jobs, how)


def batches(reader: SpanReader, jobs: list[tuple[str, list[str]]], how: str) -> None:
    """Windows of one question in one call of the engine, against one by one."""
    backend: Any = reader.backend
    took, other, total = {"one": 0.0, "batch": 0.0}, 0, 0
    for question, passages in jobs:
        windows = [w for text in passages for w in reader.windows(question, text).windows]
        began = time.perf_counter()
        alone = backend.logits(windows)
        took["one"] += time.perf_counter() - began
        began = time.perf_counter()
        batch = collate(backend.names, reader.tokenizer, windows)
        starts, _ = backend.session.run(None, {name: t.numpy() for name, t in batch.items()})
        took["batch"] += time.perf_counter() - began
        for row, (own, _) in enumerate(alone):
            here = torch.from_numpy(starts[row, : len(own)])
            other += int(here.argmax() != own.argmax())
            total += 1
    gain = took["one"] / took["batch"]
    said = f"{how}; another likeliest start in {other} of {total} windows"
    figure("spans_batched_over_one_by_one", round(gain, 2), "ratio", None, True, said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="the export folder of a run of task spans")
    parser.add_argument("--file", default="model-int8.onnx")
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--only", choices=("rules", "speed"))
    options = parser.parse_args()
    file = options.questions or sample.sample_path("handbook-squad.json")
    chunks, asked = loaded(file)
    folder, onnx = options.export / "safetensors", options.export / options.file
    if options.only != "speed":
        rules(SpanReader(folder, onnx=onnx, threads=usable_cores()), chunks, asked)
    if options.only != "rules":
        speed(folder, onnx, chunks, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
