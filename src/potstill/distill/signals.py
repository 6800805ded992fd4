"""Where the teacher's distribution comes from: its forward pass, or a file of its hidden states.

In: micro-batches. Out: for their active tokens the teacher's last hidden states, from which
`fused.py` rebuilds the exact distribution through `weight`, the teacher's output layer.
Knows nothing of students or losses.

The file holds bf16 hidden states of every prediction of every row, in row order, and is written
as it is computed: a killed run goes on after the last whole row. Its index carries a digest of
the teacher and of all token ids; with any other teacher, tokenizer, template or text it is
refused, and built anew by `open_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.core.files import disk_errors, read_json, write_json
from potstill.distill.batches import ActiveTokens, MicroBatch, Row, collate, split_step
from potstill.errors import StoreError, TrainingError
from potstill.models.surgery import body_of, output_weight

LARGEST_CACHE = 8 << 30
CACHE_BATCH_TOKENS = 4096


class TeacherSignal(Protocol):
    """A source of the teacher's distribution."""

    weight: Tensor
    """[V_t, d_t]: the teacher's output layer."""

    def hidden(self, rows: Sequence[Row], batch: MicroBatch) -> Tensor:
        """The teacher's last hidden states at `batch.positions`: [N, d_t]."""
        ...


class LiveTeacher:
    """The teacher itself, in evaluation mode and without gradients."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = model.to(dtype).eval().requires_grad_(False)
        self.body = body_of(model)
        self.weight = output_weight(model).detach()

    @torch.no_grad()
    def hidden(self, rows: Sequence[Row], batch: MicroBatch) -> Tensor:
        """One forward pass of the teacher's body; its output layer is not multiplied here."""
        states = self.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        chosen: Tensor = states.flatten(0, 1)[batch.positions]
        return chosen


class CachedTeacher:
    """Hidden states read from a memory-mapped file; the teacher's body need not be in memory."""

    def __init__(self, folder: Path, weight: Tensor, digest: str, rows: Sequence[Row]) -> None:
        """Open a finished cache. Errors: StoreError if it is unfinished, damaged or another's."""
        index = read_json(folder / "index.json")
        width = int(weight.shape[1])
        expected = cache_key(digest, rows, width)
        if index.get("key") != expected:
            raise StoreError(
                f"The teacher's signals in {folder} belong to another teacher, tokenizer, "
                "template or text.",
                "Delete the folder; they are computed again.",
            )
        total = sum(row.predictions for row in rows)
        file = folder / "hidden.bf16"
        if not file.exists() or file.stat().st_size != total * width * 2:
            raise StoreError(
                f"The teacher's signals in {file} are damaged.",
                "Delete the folder; they are computed again.",
            )
        self.weight = weight
        self.states = torch.from_file(
            str(file), shared=False, size=total * width, dtype=torch.bfloat16
        ).view(total, width)
        self.offsets = _offsets(rows)

    def hidden(self, rows: Sequence[Row], batch: MicroBatch) -> Tensor:
        """Rows of the file: the prediction at position t of row r is number offsets[r] + t."""
        longest = batch.input_ids.shape[1]
        starts = torch.tensor([self.offsets[row] for row in batch.rows])
        positions = batch.positions.cpu()
        chosen = starts[positions // longest] + positions % longest
        return self.states[chosen].to(batch.input_ids.device)


def cache_key(digest: str, rows: Sequence[Row], width: int) -> str:
    """What a cache belongs to: the teacher's digest, every token id, and the states' width."""
    hashed = hashlib.sha256(json.dumps([digest, width, len(rows)]).encode())
    for row in rows:
        hashed.update(json.dumps(row.ids).encode())
    return hashed.hexdigest()


def cache_bytes(rows: Sequence[Row], width: int) -> int:
    """Size of a cache of these rows."""
    return sum(row.predictions for row in rows) * width * 2


def open_cache(
    folder: Path,
    teacher: LiveTeacher,
    digest: str,
    rows: Sequence[Row],
    progress: Callable[[int, int], None],
) -> CachedTeacher:
    """The cache of these rows in `folder`: opened, completed or built, whatever it needs.

    progress(done, total) counts tokens. Errors: TrainingError if the teacher's states are not
    finite; it names the row.
    """
    width = int(teacher.weight.shape[1])
    key = cache_key(digest, rows, width)
    index, part = folder / "index.json", folder / "part.json"
    if not index.exists():
        with disk_errors(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
            if not part.exists() or read_json(part).get("key") != key:
                (folder / "hidden.bf16").unlink(missing_ok=True)
                write_json(part, {"key": key})
            _compute(folder / "hidden.bf16", teacher, rows, width, progress)
            write_json(index, {"key": key, "rows": len(rows), "width": width})
            part.unlink(missing_ok=True)
    return CachedTeacher(folder, teacher.weight, digest, rows)


def _compute(
    file: Path,
    teacher: LiveTeacher,
    rows: Sequence[Row],
    width: int,
    progress: Callable[[int, int], None],
) -> None:
    """Append the states of the rows that the file does not hold yet, in row order."""
    offsets = _offsets(rows)
    held = file.stat().st_size // (2 * width) if file.exists() else 0
    done = max(number for number, offset in enumerate(offsets) if offset <= held)
    every = ActiveTokens(kd="all", ce=None)
    with file.open("ab") as output:
        output.truncate(offsets[done] * 2 * width)
        while done < len(rows):
            group = _next_group(rows, done)
            states: dict[int, Tensor] = {}
            # Similar lengths together; the file still gets them in row order.
            for micro in split_step(group, [len(row.ids) for row in rows], CACHE_BATCH_TOKENS):
                batch = collate(rows, micro, every, padding=0)
                batch = batch.to(teacher.weight.device)
                hidden = teacher.hidden(rows, batch).to(torch.bfloat16).cpu()
                pieces = torch.split(hidden, [rows[row].predictions for row in micro])
                states.update(zip(micro, pieces, strict=True))
            for row in group:
                if not torch.isfinite(states[row]).all():
                    raise TrainingError(
                        f"The teacher's hidden states of row {rows[row].id} are not finite.",
                        "Remove the row, or use precision: fp32.",
                    )
                output.write(states[row].contiguous().view(torch.uint8).numpy().data)
            done = group[-1] + 1
            progress(offsets[done], offsets[-1])
        output.flush()
        os.fsync(output.fileno())


def _next_group(rows: Sequence[Row], first: int) -> list[int]:
    """The next rows, about four batches of them."""
    group: list[int] = []
    tokens = 0
    while first + len(group) < len(rows) and tokens < 4 * CACHE_BATCH_TOKENS:
        tokens += len(rows[first + len(group)].ids)
        group.append(first + len(group))
    return group


def _offsets(rows: Sequence[Row]) -> list[int]:
    """First prediction of each row in the file, and the total at the end."""
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + row.predictions)
    return offsets
