"""Which checkpoints can be trusted: only those that were marked when they were whole.

In: a folder of `checkpoint-N` folders, as transformers' Trainer writes them. Out: the newest whole
one; broken ones are deleted. Knows nothing of what is in a checkpoint.

A kill may fall into the middle of a checkpoint. So its files are flushed to disk first, then the
mark with their sizes is written atomically, and only then older checkpoints are deleted, mark
first. Whatever has no true mark is what a kill left behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from potstill.core.files import WHOLE, is_whole, mark_whole
from potstill.distill.memory import wants_memory
from potstill.errors import StoreError, TrainingError

MARK = WHOLE
mark_complete = mark_whole
is_complete = is_whole


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of the folder; incomplete ones are deleted."""
    found = []
    for step, checkpoint in _all(folder):
        if is_complete(checkpoint):
            found.append((step, checkpoint))
        else:
            shutil.rmtree(checkpoint)
    return max(found)[1] if found else None


def keep_only(folder: Path, steps: Iterable[int | None]) -> None:
    """Delete the checkpoints of all other steps."""
    kept = set(steps)
    for step, checkpoint in _all(folder):
        if step not in kept:
            (checkpoint / MARK).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


@contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """While something is loaded from it. Errors: TrainingError if what is there is damaged."""
    kinds = (ValueError, KeyError, EOFError, RuntimeError, OSError, SafetensorError, StoreError)
    try:
        yield
    except kinds as error:
        if wants_memory(error) or (isinstance(error, OSError) and error.errno):
            raise
        raise TrainingError(
            f"The checkpoint {checkpoint} cannot be gone on from ({str(error)[:200]}).",
            "Delete that folder; training goes on from the one before, or starts again.",
        ) from error


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that the checkpoint stands for, from its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _all(folder: Path) -> list[tuple[int, Path]]:
    named = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted((step_of(path), path) for path in named)
