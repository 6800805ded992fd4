"""What a training tells while it goes on: progress, curves, speed, a checkpoint now and then.

In: the callbacks' calls of transformers' Trainer. Out: events of the run, TensorBoard files, and
requests for checkpoints. Knows nothing of losses or of how a step is computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from potstill.core.events import Emitter
from potstill.distill.ranks import Ranks

CURVES = (
    "loss",
    "kd",
    "ce",
    "hidden_mse",
    "hidden_cosine",
    "attention",
    "agreement",
    "student_entropy",
    "teacher_entropy",
    "grad_norm",
    "learning_rate",
    "rollout_share",
    "rollouts",
    "rollout_tokens",
    "rollout_truncated",
    "rollout_empty",
)
"""What a step logs, besides each term's gradient norm now and then (`grad_norm_<term>`)."""


def is_curve(name: str) -> bool:
    """Whether a logged name is one of a step's curves."""
    return name in CURVES or name.startswith("grad_norm_")


class Meter:
    """Useful operations of the step that is being computed, counted by the trainer."""

    def __init__(self, machine_flops: float) -> None:
        """machine_flops: operations a second that this machine can do; 0 if not measured."""
        self.machine_flops = machine_flops
        self.flops = 0.0


class Diary(TrainerCallback):  # type: ignore[misc]
    """Tells the run's events what the Trainer logs, and how fast it is."""

    def __init__(
        self,
        events: Emitter,
        name: str,
        tokens: Sequence[int],
        steps: int,
        meter: Meter,
        board: Any,
    ) -> None:
        """tokens: trained on after each step, known at the latest when the step is done."""
        self.events, self.name, self.tokens, self.steps = events, name, tokens, steps
        self.meter, self.board = meter, board
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.meter.flops = time.monotonic(), 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step
        self.events.progress(
            done, self.steps, "steps", step=self.name, tokens=self.tokens[done - 1]
        )
        seconds = max(1e-9, time.monotonic() - self.began)
        before = self.tokens[done - 2] if done > 1 else 0
        speed = {"tokens_per_second": round((self.tokens[done - 1] - before) / seconds, 1)}
        if self.meter.machine_flops:
            used = self.meter.flops / seconds / self.meter.machine_flops
            speed["model_flop_utilisation"] = round(used, 4)
        for name, value in speed.items():
            self._metric(name, value, done)
            self.board.add_scalar(f"speed/{name}", value, done)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for name, value in (logs or {}).items():
            if is_curve(name):
                self._metric(name, value, state.global_step)
            elif name.startswith("eval_"):
                self._metric(f"validation_{name.removeprefix('eval_')}", value, state.global_step)

    def _metric(self, name: str, value: float, step: int) -> None:
        self.events.metric(name, value, step=step, model=self.name)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint when the last one is too long ago, by the first process's clock."""

    def __init__(self, minutes: float, ranks: Ranks | None = None) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()
        self.ranks = ranks or Ranks()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.ranks.first(lambda: time.monotonic() - self.last > self.seconds):
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


class NoBoard:
    """Takes what a TensorBoard writer takes, and keeps none of it."""

    def add_scalar(self, *_: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_board(folder: Path, resumed_step: int | None) -> Any:
    """A TensorBoard writer; after a resume it takes back what was written past the checkpoint."""
    from torch.utils.tensorboard import SummaryWriter

    purge = None if resumed_step is None else resumed_step + 1
    return SummaryWriter(log_dir=str(folder), purge_step=purge)
