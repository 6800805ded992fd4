"""The process that answers with one ONNX file: `python -m potstill.export.extractive.worker`.

In: one JSON job on standard input: the model's folder, the file, pairs, rounds, threads. Out: one
JSON line on standard output: answers, seconds, memory. Knows nothing of gold answers.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from potstill.core.machine import own_peak_bytes
from potstill.models.spans.reader import SpanReader


def answered(job: dict[str, Any]) -> dict[str, Any]:
    """One question after the other, `rounds` times; the medians count."""
    torch.set_num_threads(job["threads"])
    began = time.perf_counter()
    reader = SpanReader(job["folder"], onnx=job["file"])
    loaded = time.perf_counter() - began
    reader.answer(*job["pairs"][0])  # warm-up
    rounds: list[list[float]] = []
    answers: list[str] = []
    for _ in range(job["rounds"]):
        times = []
        answers = []
        for pair in job["pairs"]:
            began = time.perf_counter()
            answers.append(reader.answer(*pair).answer)
            times.append(time.perf_counter() - began)
        rounds.append(times)
    every = sorted(one for some in rounds for one in some)
    return {
        "answers": answers,
        "questions_per_second": len(answers) / statistics.median(map(sum, rounds)),
        "answer_s": statistics.median(every),
        "answer_p95_s": every[int(0.95 * (len(every) - 1))],
        "load_s": loaded,
        "peak_memory_bytes": own_peak_bytes(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answered(json.loads(sys.stdin.read()))) + "\n")
