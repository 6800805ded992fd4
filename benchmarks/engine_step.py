"""Potstill's own side of the engine's benchmark: training steps, timed one by one.

    python benchmarks/engine_step.py --rows FILE --model FOLDER --student FOLDER [--batch 8]
        [--steps 5] [--warmup 1] [--dtype autocast] [--tokens answer|all] [--apart]
        [--pack N] [--profile]

The arguments are those of the peers' scripts, and so is the line that comes out; a process of its
own, so that its peak memory is its own. A step is a whole one: batches made, teacher, student,
backward, clipping, AdamW. `--pack N` leaves rows aside and trains on full packs of N tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from potstill.distill import attention
from potstill.distill.batches import Row, RowSet, active_counts
from potstill.distill.families import group
from potstill.distill.flops import machine_flops
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.objective import Objective
from potstill.distill.packing import split
from potstill.distill.signals import LiveTeacher
from potstill.distill.terms import TermLoss, Weights
from potstill.models.load import load_model

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import measure

DTYPES = {"fp32": torch.float32, "autocast": torch.bfloat16}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="autocast")
    parser.add_argument("--malloc", choices=("default", "raised"), default="raised")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", choices=("answer", "all"), default="answer")
    parser.add_argument("--apart", action="store_true", help="rows share no beginnings")
    parser.add_argument("--micro", type=int, default=4096, help="tokens that are computed at once")
    parser.add_argument("--pack", type=int, default=0, help="steps of one full pack of N tokens")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    return parser.parse_args()


def read_rows(file: Path, count: int) -> list[Row]:
    """The first rows of the file, or all."""
    found = []
    for line in file.read_text().splitlines()[: count or None]:
        row = json.loads(line)
        found.append(Row(row["id"], tuple(row["ids"]), row["answer_start"]))
    return found


def packs(rows: list[Row], tokens: int, count: int) -> list[list[Row]]:
    """Steps that fill one pack of exactly `tokens` each: whole rows, and the start of one more."""
    steps: list[list[Row]] = []
    left, current = tokens, []
    for row in rows:
        if len(steps) == count:
            break
        kept = row.ids[:left]
        if len(kept) > 1:
            current.append(Row(row.id, kept, min(row.answer_start, len(kept))))
        left -= len(kept)
        if left <= 1:
            steps.append(current)
            left, current = tokens, []
    return steps


def main() -> None:
    """Train and print."""
    stdout = measure.claim_stdout()
    options = arguments()
    if options.malloc == "raised":
        raise_malloc_thresholds()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = DTYPES[options.dtype]
    wanted = options.warmup + options.steps
    if options.pack:
        batches = packs(read_rows(options.rows, 0), options.pack, wanted)
    else:
        rows = read_rows(options.rows, wanted * options.batch)
        batches = [
            rows[start : start + options.batch] for start in range(0, len(rows), options.batch)
        ]
    data_rows = [row for batch in batches for row in batch]
    objective = Objective(kd_tokens=options.tokens, ce_weight=0.0)
    teacher, student = load_model(options.model), load_model(options.student)
    attention.use(teacher)
    attention.use(student)
    student.float().train().requires_grad_(True)
    steps, first = [], 0
    for batch in batches:
        numbers = range(first, first + len(batch))
        families = [(number,) for number in numbers]
        if not options.apart:
            found = group([row.ids for row in batch], computed=options.micro, in_full=10**9)
            families = [tuple(first + one for one in family) for family in found]
        steps.append(families)
        first += len(batch)
    data = RowSet(data_rows, [family for families in steps for family in families], packed=True)
    signal = LiveTeacher(teacher, dtype)
    loss = TermLoss(student, signal, objective, vocabulary=student.config.vocab_size, dtype=dtype)
    optimizer = torch.optim.AdamW(student.parameters(), lr=measure.LEARNING_RATE, fused=True)
    clock, flops, tokens, computed = measure.Clock(), [], [], []

    def step(families: list[tuple[int, ...]]) -> None:
        rows = [data.rows[number] for family in families for number in family]
        totals, weights = active_counts(rows, objective.active), Weights(kd=1.0)
        total, useful = 0.0, 0.0
        for micro in split(data, families, options.micro):
            batch = data.collate(micro, objective.active, 0)
            part, _ = loss(data.rows, batch, weights, totals, details=True)
            part.backward()
            total += float(part.detach())
            useful += loss.flops(batch)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(total)
        flops.append(useful)
        tokens.append(sum(len(row.ids) for row in rows))
        computed.append(sum(data.sizes[family] for family in families))
        clock.step()

    clock.start()
    for families in steps:
        step(families)
    if options.profile:
        from torch.profiler import profile

        with profile() as seen:
            step(steps[-1])
        table = seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        print(table, file=sys.stderr)
    kept = slice(options.warmup, wanted)
    result: dict[str, Any] = {
        "peer": "potstill",
        "dtype": options.dtype,
        "malloc": options.malloc,
        "seconds": clock.seconds[kept],
        "tokens": tokens[kept],
        "computed": computed[kept],
        "losses": clock.losses[kept],
        "flops": flops[kept],
        "machine_flops": machine_flops(dtype, torch.device("cpu"), options.threads),
        "peak_memory_bytes": measure.peak_memory_bytes(),
    }
    print(json.dumps(result), file=stdout, flush=True)


if __name__ == "__main__":
    main()
