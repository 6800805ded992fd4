"""Several processes that train one student: who does what, and how their parts become one.

In: a process group that is open, if any. Out: a share of the work, and sums over all processes.
With one process everything stays as it is. It is for a `DistillTrainer` that somebody starts in
each process; a run and a `Distiller` are one process. Knows nothing of losses.

Gradients are added up, not averaged: each process has already divided by the active tokens of the
whole step, so that the sum is the gradient of one process that does it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 1 << 25
"""Numbers that are added up in one message."""

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


def _reduce(gradients: Sequence[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([one.reshape(-1) for one in gradients])
    dist.all_reduce(flat)
    for one, part in zip(
        gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True
    ):
        one.copy_(part.view_as(one))
