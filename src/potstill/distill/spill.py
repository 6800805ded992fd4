"""What a layer made of many batches, on disk until the next layer asks for it.

In: one tensor a batch, layer after layer. Out: the same tensors, batch by batch. Knows nothing of
models or rows.

    states-0.bin, states-1.bin   outputs of the even and of the odd layers, batch after batch
    progress.json                what they belong to, the layer, how many of its batches are done

A layer reads one file and writes the other. Progress is noted when a layer is done, before the
next one writes over its input, and at most every `NOTE_SECONDS` in between; each time the states
are on disk first. So a killed run goes on from the last note, and computes the same.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from potstill.core.files import disk_errors, read_json, write_json
from potstill.core.machine import free_disk_bytes
from potstill.errors import StoreError

NOTE_SECONDS = 30.0
PROGRESS = "progress.json"


class Spill:
    """States [tokens, width] of every batch, of the layer that is computed and the one before."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        tokens: Sequence[int],
        width: int,
        dtype: torch.dtype,
    ) -> None:
        """tokens: of each batch. What is there of another identity is removed."""
        self.folder, self.width, self.dtype, self.tokens = folder, width, dtype, tokens
        sizes = [count * width * dtype.itemsize for count in tokens]
        self.places = [0, *accumulate(sizes)]
        """Where each batch begins, and where the last one ends."""
        self.identity = {
            **identity,
            "batches": len(tokens),
            "bytes": self.places[-1],
            "type": str(dtype),
        }
        self.layer, self.done = self._noted()
        """The layer that is computed, from 0, and how many of its batches are done."""
        self.noted = time.monotonic()
        with disk_errors(folder, "write"):
            if (self.layer, self.done) == (0, 0):
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            self.files = [_opened(folder / f"states-{side}.bin") for side in (0, 1)]

    def read(self, batch: int) -> Tensor:
        """What the layer before made of a batch: [tokens, width]."""
        return self._read(batch, self.layer - 1)

    def result(self, batch: int) -> Tensor:
        """What the last layer that is done made of a batch: [tokens, width]."""
        assert not self.done, "the layer is not done"
        return self._read(batch, self.layer - 1)

    def write(self, batch: int, states: Tensor) -> None:
        """Keep what the layer made of the next batch: [tokens, width]."""
        assert batch == self.done, "batches come in their order"
        assert states.shape == (self.tokens[batch], self.width)
        file = self.files[self.layer % 2]
        with disk_errors(self.folder, "write"):
            file.seek(self.places[batch])
            file.write(_bytes(states.cpu().contiguous()))
        self.done += 1
        if self.done == len(self.tokens):
            self._sync()
            self.layer, self.done = self.layer + 1, 0
            self._note()
        elif time.monotonic() - self.noted > NOTE_SECONDS:
            self._sync()
            self._note()

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self.files:
            file.close()

    def _read(self, batch: int, layer: int) -> Tensor:
        states = torch.empty(self.tokens[batch], self.width, dtype=self.dtype)
        file = self.files[layer % 2]
        with disk_errors(self.folder, "read"):
            file.seek(self.places[batch])
            found = file.readinto(_bytes(states))  # type: ignore[attr-defined]
        if found != states.nbytes:
            raise StoreError(
                f"The teacher's states in {self.folder} are cut short.",
                "Delete the folder; they are computed again.",
            )
        return states

    def _sync(self) -> None:
        with disk_errors(self.folder, "write"):
            file = self.files[self.layer % 2]
            file.flush()
            os.fsync(file.fileno())

    def _note(self) -> None:
        note = {"identity": self.identity, "layer": self.layer, "done": self.done}
        write_json(self.folder / PROGRESS, note)
        self.noted = time.monotonic()

    def _noted(self) -> tuple[int, int]:
        """Layer and batches that a run before got to; nothing if it was another's or is damaged."""
        try:
            note = read_json(self.folder / PROGRESS)
            layer, done = int(note["layer"]), int(note["done"])
            sides = [self.folder / f"states-{side}.bin" for side in (0, 1)]
            ends = {layer % 2: self.places[done]}
            if layer:
                ends[(layer - 1) % 2] = self.places[-1]
            whole = all(sides[side].stat().st_size >= end for side, end in ends.items())
        except (StoreError, OSError, KeyError, TypeError, ValueError, IndexError):
            return 0, 0
        return (layer, done) if whole and note["identity"] == self.identity else (0, 0)


def check_room(folder: Path, needed: int) -> None:
    """Errors: StoreError if the disk has not so many bytes free, with what the folder holds."""
    with disk_errors(folder, "read"):
        free = free_disk_bytes(folder)
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed > free + held:
        raise StoreError(
            f"Computing the teacher layer by layer needs {needed:,} bytes in {folder}, and "
            f"{free + held:,} are free.",
            "Free some disk space, then run the same command again; or use "
            "distill.teacher_loading: resident.",
        )


def _bytes(states: Tensor) -> Any:
    """The tensor's own memory."""
    memory: Any = states.view(torch.uint8).numpy()
    return memoryview(memory).cast("B")


def _opened(file: Path) -> BinaryIO:
    file.touch()
    return file.open("r+b")
