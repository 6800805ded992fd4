"""The trainers of a student that lies in parts over the processes.

In: as for `DistillTrainer`, and the student's parts. Out: the same steps, figures and checkpoints.
Knows nothing of how weights are cut and put together (`sharding.py`, `zero.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from potstill.distill import checkpoints
from potstill.distill.ranks import Ranks
from potstill.distill.sharding import Sharded, whole_norm
from potstill.distill.steps import Step
from potstill.distill.terms import Weights
from potstill.distill.trainer import DistillTrainer
from potstill.distill.zero import ZeroSharded

Found = TypeVar("Found")


class ShardedTrainer(DistillTrainer):
    """The loss is computed within the student's own pass, so that its weights are there."""

    def __init__(self, sharded: Sharded | ZeroSharded, *given: Any, **settings: Any) -> None:
        """sharded: of the student; the steps are even. The rest is `DistillTrainer`'s."""
        self.sharded: Any = sharded
        super().__init__(sharded.model, *given, **settings)

    def _within(self, act: Callable[[], Found]) -> Found:
        found: Found = self.sharded.within(act)
        return found

    def _add_up_gradients(self) -> None:
        """Nothing: the parts were added up in the backward pass."""

    def _term_gradients(self, step: Step, weights: Weights) -> dict[str, float]:
        """Nothing: a gradient by itself would have to be put together by all."""
        return {}

    def held_out(self, ranks: Ranks | None = None) -> dict[str, float]:
        """By every process of all rows, as they must ask the student equally often."""
        with torch.no_grad():
            return self._within(lambda: super(ShardedTrainer, self).held_out(Ranks()))

    def _clip_grad_norm(self, model: Any) -> Any:
        return whole_norm(super()._clip_grad_norm(model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights as one process writes them."""
        self.sharded.save(Path(output_dir or self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.sharded.save_optimizer(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with checkpoints.readable(Path(resume_from_checkpoint)):
            self.sharded.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with checkpoints.readable(Path(checkpoint)):
                self.sharded.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint))


class ZeroTrainer(ShardedTrainer):
    """DeepSpeed's engine has the backward pass, clips, and takes the optimizer's step."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, handed to DeepSpeed with the student; of it only the rates are left to set."""
        started: torch.optim.Optimizer = self.sharded.start(super().create_optimizer(model))
        self.optimizer = started
        return started

    def _backward(self, part: Tensor, *, last: bool) -> None:
        self.sharded.backward(part, last=last)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Nothing: the engine clips in its step, which finds the norm."""
        return None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Takes the step. Errors: TrainingError if the norm is not finite."""
        return super()._get_grad_norm(model, self.sharded.step())
