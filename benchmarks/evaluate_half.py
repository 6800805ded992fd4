"""Measures what a student of half its teacher's size saves: answers a second, and memory.

    python benchmarks/evaluate_half.py [--data FILE] [--rows 24]

The teacher, SmolLM2-135M-Instruct, answers in transformers, one `generate` a question, in float32
and in bfloat16. Its student of half the parameters is cut as the distill stage cuts it, written as
Q4_K_M as the export stage writes it, and answers through llama.cpp. Each is a process of its own,
in turn; the better time of each counts. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from answering import ANSWER_TOKENS, PARALLEL
from evaluate_speed import bench_rows, held_rows, one_by_one
from figures import figure

from potstill.core.machine import own_peak_bytes, usable_cores
from potstill.export.gguf import convert, quantize
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.sampling import end_tokens

HERE = Path(__file__).parent
ROUNDS = 2
GOAL_SPEED, GOAL_MEMORY = 8, 0.25
SEEN = 200
"""Questions for the cut; those after them are answered."""
FAIR = 0.9
"""Share of the teacher's tokens that the student must have written as well: short answers are
cheap."""
CUT = {"parameters_ratio": 0.5, "candidates": 1, "fit_tokens": 4096}


def made_student(folder: Path, rows: list[dict[str, str]]) -> tuple[Path, float]:
    """The student's Q4_K_M file, and its share of the teacher's parameters."""
    teacher = str(model_folder(bench_rows.TEACHER))
    spec = {"teacher": teacher, "settings": CUT, "output": str(folder / "cut")}
    place = folder / "spec.json"
    place.write_text(json.dumps(spec | {"rows": rows[20:], "validation": rows[:20]}), "utf-8")
    command = [sys.executable, str(HERE / "teaching_arm.py"), str(place), "--cut"]
    subprocess.run(command, check=True, stdout=sys.stderr)

    student = folder / "cut" / "student"
    tokenizer = load_tokenizer(student)
    convert(student, folder / "f16.gguf", tokenizer, "student")
    quantize(folder / "f16.gguf", folder / "q4_k_m.gguf", "q4_k_m", usable_cores())
    sizes = [
        sum(one.numel() for one in load_model(path).parameters()) for path in (student, teacher)
    ]
    return folder / "q4_k_m.gguf", sizes[0] / sizes[1]


def usual(dtype: str, prompts: list[list[int]]) -> dict[str, Any]:
    """The teacher in transformers: seconds, tokens, and the most memory that the process held."""
    torch.set_num_threads(usable_cores())
    folder = model_folder(bench_rows.TEACHER)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype)
    ends = end_tokens(model, tokenizer)
    one_by_one(model, prompts[:1], ends)
    began = time.perf_counter()
    said = one_by_one(model, prompts, ends)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": sum(map(len, said)), "memory": own_peak_bytes()}


def child(arguments: list[str], asked: list[Any]) -> dict[str, Any]:
    """What a process says that only answers."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        input=json.dumps(asked).encode(),
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure and print; or, as the teacher, answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=bench_rows.DATA, help="a SQuAD v1.1 file")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--teacher", metavar="DTYPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.teacher:
        print(json.dumps(usual(options.teacher, json.load(sys.stdin))))
        return 0
    tokenizer = load_tokenizer(model_folder(bench_rows.TEACHER))
    held, texts = held_rows(options.data, tokenizer, SEEN + options.rows)
    rows = [
        {"id": row.id, "paragraph": "", "prompt": text, "completion": row.gold.answers[0]}
        for row, text in zip(held[:SEEN], texts[:SEEN], strict=True)
    ]
    prompts = [row.encoded.prompt for row in held[SEEN:]]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        file, share = made_student(Path(scratch), rows)
        for _ in range(ROUNDS):
            for name, arguments, asked in (
                ("float32", [__file__, "--teacher", "float32"], prompts),
                ("bfloat16", [__file__, "--teacher", "bfloat16"], prompts),
                ("student", [str(HERE / "answering.py"), str(file)], texts[SEEN:]),
            ):
                found.setdefault(name, []).append(child(arguments, asked))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
        disk = file.stat().st_size
    pace = {name: min(one["seconds"] for one in some) for name, some in found.items()}
    memory = {name: min(one["memory"] for one in some) for name, some in found.items()}
    tokens = {name: some[0]["tokens"] for name, some in found.items()}
    for dtype in ("float32", "bfloat16"):
        how = (
            f"{len(prompts)} questions, up to {ANSWER_TOKENS} new tokens, greedy, best of {ROUNDS} "
            f"turns: the teacher in transformers in {dtype}, one by one ({pace[dtype]:.1f} s, "
            f"{tokens[dtype]} tokens, {memory[dtype] / 1e6:.0f} MB), against its student of "
            f"{share:.0%} of the parameters, Q4_K_M of {disk / 1e6:.0f} MB, {PARALLEL} at once in "
            f"llama.cpp ({pace['student']:.1f} s, {tokens['student']} tokens, "
            f"{memory['student'] / 1e6:.0f} MB)"
        )
        times = pace[dtype] / pace["student"]
        fair = tokens["student"] >= FAIR * tokens[dtype]
        name = f"half size in Q4_K_M against the teacher in {dtype}"
        figure(f"{name}, answers", times, "times", GOAL_SPEED, times >= GOAL_SPEED and fair, how)
        part = memory["student"] / memory[dtype]
        figure(f"{name}, memory", part, "ratio", GOAL_MEMORY, part <= GOAL_MEMORY, how)
    return 0


if __name__ == "__main__":
    sys.exit(main())
