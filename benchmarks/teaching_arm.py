"""One training of the teaching benchmark, and what came of it; a process of its own.

    python benchmarks/teaching_arm.py SPEC.json [--cut]

In: a file that names teacher, student, rows, settings and folders (written by `teaching.py`). Out:
the trained model in its folder, and beside it `scores.json`: each test row's sums of KL, agreement
and log-loss, its F1, and the seconds and memory of the training. With --cut: the student that the
settings cut, not trained. Knows nothing of other arms.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from potstill.core.events import Emitter, read_events
from potstill.core.files import write_json
from potstill.distill import DistillConfig, Distiller
from potstill.distill.batches import encode_rows
from potstill.distill.lessons import Lessons
from potstill.distill.opening import open_teacher
from potstill.distill.own_rows import example_of
from potstill.distill.student import make_student
from potstill.evaluate.answer_scores import Gold
from potstill.evaluate.forward import head_of
from potstill.evaluate.scan import Held, ScanSettings, scan
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer
from potstill.records import Turn

THREADS = 2
ANSWER_TOKENS = 24


def main() -> None:
    """Train, unless the model is there; score; write."""
    spec = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(THREADS)
    output = Path(spec["output"])
    if "--cut" in sys.argv:
        cut(spec, output)
        return
    facts: dict[str, Any] = {}
    if spec["timed"] and output.exists():
        shutil.rmtree(output)  # the seconds of half a training are none
    if spec["settings"] is not None:
        begun, began = output.exists(), time.perf_counter()
        trained = Distiller(
            spec["teacher"],
            spec["student"],
            output=output,
            seed=spec["seed"],
            **spec["settings"],
        ).train(spec["rows"], spec["validation"])
        facts = {
            "seconds": None if begun else time.perf_counter() - began,
            "seconds_a_token": pace(output / "events.jsonl"),
            "steps": trained.trained.steps,
            "tokens": trained.trained.tokens,
            "stopped_early": trained.trained.stopped_early,
            "validation": trained.history["validation"],
        }
        model = output / "model"
    else:
        output.mkdir(parents=True, exist_ok=True)
        model = Path(spec["student"])
    facts["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json(output / "scores.json", facts | score(spec, model))


def pace(events: Path) -> float:
    """Seconds a token from the first step on, with all that is done between steps."""
    found, _ = read_events(events)
    steps = [one for one in found if one.get("unit") == "steps"]
    first, last = steps[0], steps[-1]
    return float((last["time"] - first["time"]) / (last["tokens"] - first["tokens"]))


def cut(spec: dict[str, Any], output: Path) -> None:
    """The student that the settings cut from the teacher, in `output/student`."""
    output.mkdir(parents=True, exist_ok=True)
    config = DistillConfig(teacher=spec["teacher"], student=spec["settings"])
    tokenizer = load_tokenizer(spec["teacher"])
    examples, unseen = (
        [example_of(row, number) for number, row in enumerate(spec[name])]
        for name in ("rows", "validation")
    )
    rows, validation = (
        encode_rows(some, tokenizer, config.sequence_tokens) for some in (examples, unseen)
    )
    events = Emitter(output / "events.jsonl", "distill")
    made = make_student(
        config,
        open_teacher(spec["teacher"], config, rows, events),
        Lessons(tokenizer, rows, validation, examples, 0, events),
        begins=spec["teacher"],
        digest="bench",
        work=output,
        tensorboard=output / "tensorboard",
    )
    write_json(output / "report.json", made.report)


def score(spec: dict[str, Any], model: Path) -> dict[str, Any]:
    """Each test row's scores against the reference teacher, as lists in the rows' order.

    The teacher is read once for all arms; its states stay in a folder of their own.
    """
    reference, states = spec["reference"], Path(spec["states"])
    tokenizer = load_tokenizer(reference)
    held = held_of(spec["test"], tokenizer)
    teacher = load_model(reference)
    settings = ScanSettings(states, len(tokenizer), ANSWER_TOKENS, 16, 256)
    if Path(reference) == model or not (states / "done").exists():
        states.mkdir(parents=True, exist_ok=True)
        said = scan("teacher", teacher, tokenizer, held, None, settings)
        (states / "done").touch()
    if Path(reference) != model:
        head = head_of(teacher, len(tokenizer))
        del teacher
        said = scan("student", load_model(model), tokenizer, held, head, settings)
    return {
        "parameters": sum(one.numel() for one in load_model(model).parameters()),
        "ids": [one.id for one in held],
        "f1": [one.scores.answer.f1 for one in said],
        "em": [one.scores.answer.em for one in said],
        "finished": [one.finished for one in said],
        "answers": [one.answer for one in said],
        "fidelity": [asdict(one.scores.fidelity) for one in said],
    }


def held_of(rows: Sequence[Mapping[str, str]], tokenizer: Any) -> list[Held]:
    """Rows as they are scored."""
    held = []
    for row in rows:
        turns = [Turn(role="user", content=row["prompt"])]
        turns.append(Turn(role="assistant", content=row["completion"]))
        gold = Gold(row["id"], (row["completion"],))
        held.append(Held(row["id"], encode_example(tokenizer, turns, 4096), gold))
    return held


if __name__ == "__main__":
    main()
