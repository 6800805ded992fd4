"""Students that learn the same steps from every source of the teacher's word, step by step in turn.

    python benchmarks/engine_signals.py --rows FILE --model FOLDER --student FOLDER --work FOLDER

One student for each source, all with the same start, rows, order and optimizer; each step is done
by all of them before the next, so that their times compare. Prints, for each source, the seconds of
each step, the bytes a token on disk, and the forward KL to the exact teacher on rows that none has
seen.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from engine_step import read_rows

from potstill.distill import attention
from potstill.distill.batches import RowSet, active_counts
from potstill.distill.families import group
from potstill.distill.held_out import figures
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.objective import Objective
from potstill.distill.packing import plan_steps
from potstill.distill.ranks import Ranks
from potstill.distill.signals import CacheFormat, LiveTeacher, TeacherSignal, open_cache
from potstill.distill.terms import TermLoss, Weights
from potstill.models.load import load_model

SOURCES = {
    "hidden_bf16": CacheFormat("hidden_bf16"),
    "hidden_int8": CacheFormat("hidden_int8"),
    "top_k 16": CacheFormat("top_k", 16),
    "top_k 64": CacheFormat("top_k", 64),
    "sampled 16": CacheFormat("sampled", 16),
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser()
    for name in ("rows", "model", "student", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--train", type=int, default=320, help="rows to train on, seen once")
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--step-tokens", type=int, default=4096)
    options = parser.parse_args()
    raise_malloc_thresholds()
    torch.set_num_threads(2)
    rows = read_rows(options.rows, 0)
    train, unseen = rows[: options.train], rows[-options.held_out :]
    ids = [row.ids for row in train]
    families = group(ids, computed=4096, in_full=options.step_tokens)
    data, held_out = RowSet(train, families, True), RowSet.apart(unseen, True)
    plan = plan_steps(
        data,
        step_tokens=options.step_tokens,
        micro_tokens=4096,
        epochs=1,
        max_tokens=None,
        seed=0,
    )
    objective = Objective(ce_weight=0.0)
    live = LiveTeacher(load_model(options.model), torch.bfloat16)
    attention.use(live.model)
    words = live.output.words
    signals: dict[str, TeacherSignal] = {"live": live}
    sizes: dict[str, float] = {}
    for name, form in SOURCES.items():
        folder = options.work / name.replace(" ", "-")
        signals[name] = open_cache(folder, live, "bench", data, form, lambda done, of: None)
        held = sum(file.stat().st_size for file in folder.iterdir())
        sizes[name] = held / sum(data.sizes.values())
    truth = open_cache(
        options.work / "truth", live, "bench", held_out, SOURCES["hidden_bf16"], lambda a, b: None
    )
    students: dict[str, tuple[TermLoss, Any]] = {}
    for name, signal in signals.items():
        student = load_model(options.student).train().requires_grad_(True)
        attention.use(student)
        loss = TermLoss(student, signal, objective, vocabulary=words, dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, fused=True)
        students[name] = (loss, optimizer)
    seconds: dict[str, list[float]] = {name: [] for name in signals}
    tokens = []
    for step in plan:
        step_rows = [train[row] for micro in step for family in micro for row in family]
        totals = active_counts(step_rows, objective.active)
        tokens.append(sum(len(row.ids) for row in step_rows))
        for name, (loss, optimizer) in students.items():
            began = time.perf_counter()
            for micro in step:
                batch = data.collate(micro, objective.active, 0)
                loss(train, batch, Weights(kd=1.0), totals, details=True)[0].backward()
            torch.nn.utils.clip_grad_norm_(loss.student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - began)
    for name, (loss, _) in students.items():
        loss.student.eval()
        found = figures(loss, truth, held_out, Weights(kd=1.0), padding=0, ranks=Ranks())
        line = {"source": name, "seconds": seconds[name][1:], "tokens": tokens[1:]}
        print(json.dumps({**line, "bytes_a_token": sizes.get(name), "kl": found["kl"]}), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
