"""Several processes that train one student: who does what, and how their parts become one.

In: a process group that is open, if any. Out: a share of the work, sums over all processes, and
what the first one says for all. With one process everything stays as it is. Whoever starts the
processes (`launch.py`, torchrun, accelerate, Ray Train), each does the same work in the same order;
what is written is written by the first. Knows nothing of losses.

Gradients are added up, not averaged: each process has already divided by the active tokens of the
whole step, so that the sum is the gradient of one process that does it all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.errors import TrainingError

ACCELERATES, DEEPSPEED = "ACCELERATE_USE_DEEPSPEED", "POTSTILL_USE_DEEPSPEED"
"""Whether DeepSpeed was asked for: as accelerate's launcher says it, and as a training reads it."""
BUCKET = 1 << 25
"""Numbers that are added up in one message."""

PATIENCE = timedelta(days=7)
"""How long a process waits for another that is at work. One that has died is noticed at once, by
its closed connection or by whoever started it."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    number: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Those of the open process group; a single one without."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which writes for all."""
        return self.number == 0

    def first(self, act: Callable[[], Item]) -> Item:
        """What `act` returns in the first process, in all of them; the others only wait for it.

        So work that is on disk is made once, and a decision is made once. If `act` raises, the
        process ends with its error, and whoever started the processes ends the others.
        """
        if self.count == 1:
            return act()
        found: list[Item | None] = [act() if self.leads else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]  # type: ignore[return-value]

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every n-th of them."""
        return items[self.number :: self.count]

    def add_up(self, parameters: Iterable[Tensor]) -> None:
        """Replace each parameter's gradient by the sum over all processes; none counts as zero."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(one.numel() for one in bucket) >= BUCKET:
                _reduce(bucket)
                bucket = []
        _reduce(bucket)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a scalar over all processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of named numbers over all processes; a process may lack some."""
        if self.count == 1:
            return dict(values)
        parts: list[dict[str, float]] = [{} for _ in range(self.count)]
        dist.all_gather_object(parts, dict(values))
        names = sorted({name for part in parts for name in part})
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def is_finished(mark: Path, folder: Path) -> bool:
    """Whether a part of the work lies there whole: its mark, which is written with it."""
    return mark.exists() and folder.is_dir()


def launched() -> int:
    """Processes that this one was started with by torchrun, accelerate or Ray Train; else 1."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Within it this process and those that it was started with are one group: NCCL with CUDA,
    where each has the GPU of its local number, else gloo. One that is open already is used.

    Errors: TrainingError if the environment names other processes and not where they are.
    """
    if launched() == 1 or dist.is_initialized():
        with _deepspeed_is_ours():
            yield Ranks.here()
        return
    if missing := [one for one in ("RANK", "MASTER_ADDR", "MASTER_PORT") if one not in os.environ]:
        raise TrainingError(
            f"This is one of several processes (WORLD_SIZE is {launched()}), and {missing[0]} is "
            "not set.",
            "Start them with torchrun or accelerate launch, or unset WORLD_SIZE.",
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise TrainingError(
            "accelerate launch was told to use FSDP, which this training does itself.",
            "Use a configuration of several GPUs without it, and set sharding: fsdp.",
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    with _deepspeed_is_ours():
        yield Ranks.here()
    _leave()  # not after an error: the others may wait in a sum


def _leave() -> None:
    """End the group; DeepSpeed, if it was there, keeps parts of it that it has to forget too."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()


@contextmanager
def _deepspeed_is_ours() -> Iterator[None]:
    """Within it accelerate does not hear that its launcher wants DeepSpeed: it would take the
    backward pass, the optimizer and the checkpoints into its own hands."""
    if os.environ.get(ACCELERATES, "").lower() != "true":
        yield
        return
    os.environ[DEEPSPEED] = os.environ.pop(ACCELERATES)
    try:
        yield
    finally:
        os.environ[ACCELERATES] = os.environ.pop(DEEPSPEED)


def _reduce(gradients: Sequence[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([one.reshape(-1) for one in gradients])
    dist.all_reduce(flat)
    for one, part in zip(
        gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True
    ):
        one.copy_(part.view_as(one))
