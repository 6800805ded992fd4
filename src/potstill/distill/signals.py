"""Where the teacher's distribution comes from: its forward pass, or a file of its hidden states.

In: micro-batches. Out: for their active tokens the teacher's last hidden states, from which
`fused.py` rebuilds the exact distribution through `weight`, the teacher's output layer.
Knows nothing of students or losses.

The file holds bf16 hidden states of every prediction of every row, in row order, and is written
as it is computed: a killed run goes on after the last whole block of rows. Its index carries a
digest of the teacher and of all token ids; with any other teacher, tokenizer, template or text it
is refused, and built anew by `open_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.core.files import disk_errors, read_json, write_json
from potstill.distill.batches import (
    ActiveTokens,
    MicroBatch,
    Row,
    RowSet,
    collate,
    split_step,
)
from potstill.distill.families import Family
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
        states = self.body(**batch.inputs()).last_hidden_state
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
        number = torch.zeros(batch.input_ids.numel(), dtype=torch.int64)
        for row, span in zip(batch.rows, batch.spans, strict=True):
            number[span.flat()[:-1]] = self.offsets[row] + torch.arange(span.length - 1)
        return self.states[number[batch.positions.cpu()]].to(batch.input_ids.device)


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
    data: RowSet,
    progress: Callable[[int, int], None],
) -> CachedTeacher:
    """The cache of these rows in `folder`: opened, completed or built, whatever it needs.

    progress(done, total) counts tokens. Errors: TrainingError if the teacher's states are not
    finite; it names the row.
    """
    width = int(teacher.weight.shape[1])
    key = cache_key(digest, data.rows, width)
    index, part = folder / "index.json", folder / "part.json"
    if not index.exists():
        with disk_errors(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
            if not part.exists() or read_json(part).get("key") != key:
                (folder / "hidden.bf16").unlink(missing_ok=True)
                (folder / "blocks.json").unlink(missing_ok=True)
                write_json(part, {"key": key})
            _compute(folder / "hidden.bf16", teacher, data, progress)
            write_json(index, {"key": key, "rows": len(data.rows), "width": width})
            part.unlink(missing_ok=True)
    return CachedTeacher(folder, teacher.weight, digest, data.rows)


def _compute(
    file: Path,
    teacher: LiveTeacher,
    data: RowSet,
    progress: Callable[[int, int], None],
) -> None:
    """Fill the file, block after block of families; a finished block is noted and not repeated.

    The blocks are the same on every run, so that a run that was killed computes the same batches
    as an undisturbed one, and bf16 sums round alike.
    """
    width = int(teacher.weight.shape[1])
    rows, offsets = data.rows, _offsets(data.rows)
    every = ActiveTokens(kd="all", ce=None)
    noted = file.with_name("blocks.json")
    size = offsets[-1] * width * 2
    whole = file.exists() and file.stat().st_size == size
    done = read_json(noted)["done"] if whole and noted.exists() else 0
    with file.open("r+b" if done else "wb") as output:
        output.truncate(size)
        finished = 0
        for number, block in enumerate(_blocks(data.sizes)):
            finished += sum(rows[one].predictions for family in block for one in family)
            if number < done:
                continue
            for micro in split_step(block, data.sizes, CACHE_BATCH_TOKENS):
                batch = collate(rows, micro, every, padding=0).to(teacher.weight.device)
                states = torch.zeros(batch.input_ids.numel(), width, dtype=torch.bfloat16)
                states[batch.positions.cpu()] = teacher.hidden(rows, batch).to(
                    "cpu", torch.bfloat16
                )
                for row, span in zip(batch.rows, batch.spans, strict=True):
                    output.seek(offsets[row] * width * 2)
                    output.write(_checked(rows[row], states[span.flat()[:-1]]))
            output.flush()
            os.fsync(output.fileno())
            write_json(noted, {"done": number + 1})
            progress(finished, offsets[-1])


def _checked(row: Row, states: Tensor) -> memoryview:
    """The bytes of a row's states. Errors: TrainingError if one is not finite."""
    if not torch.isfinite(states).all():
        raise TrainingError(
            f"The teacher's hidden states of row {row.id} are not finite.",
            "Remove the row, or use precision: fp32.",
        )
    return memoryview(states.contiguous().view(torch.uint8).numpy().data)


def _blocks(sizes: Mapping[Family, int]) -> list[list[Family]]:
    """The families in their order, about four batches in a block."""
    blocks: list[list[Family]] = []
    tokens = 4 * CACHE_BATCH_TOKENS
    for family, size in sizes.items():
        if tokens >= 4 * CACHE_BATCH_TOKENS:
            blocks.append([])
            tokens = 0
        blocks[-1].append(family)
        tokens += size
    return blocks


def _offsets(rows: Sequence[Row]) -> list[int]:
    """First prediction of each row in the file, and the total at the end."""
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + row.predictions)
    return offsets
