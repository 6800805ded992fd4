"""Trains one model that marks answers from its start to its best, through kills.

In: a model, lessons, a goal, a plan. Out: the model with its best weights, and the history of its
losses, which is the same whether the training was disturbed or not. Knows nothing of stages, of
teachers or of where models are kept.

One reducer: each term is summed over the windows of the whole optimizer step and divided by their
number, so it does not matter how a step is computed in parts. A checkpoint holds weights, AdamW's
moments, the state of random numbers, the step and the history, as safetensors and JSON.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.core.events import Emitter
from potstill.core.files import disk_errors, read_json, write_json
from potstill.distill import checkpoints
from potstill.distill.diary import open_board
from potstill.distill.extractive.config import SpanDistillConfig
from potstill.distill.extractive.lessons import Lesson, batch_of, micros
from potstill.distill.extractive.losses import ce_sum, kd_sum
from potstill.distill.outcome import Trained
from potstill.distill.schedules import rate_factor
from potstill.errors import TrainingError
from potstill.models.device import device_here

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
History = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Goal:
    """What is minimised; `kd_weight` 0 leaves the teacher out."""

    ce_weight: float
    kd_weight: float
    temperature: float = 1.0


@dataclass
class _State:
    """Where a training is."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    waited: int = 0
    """Validations since the best one."""
    history: History = field(default_factory=lambda: {"steps": [], "validation": []})


class SpanTraining:
    """One training. `run` does it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        lessons: Sequence[Lesson],
        validation: Sequence[Lesson],
        plan: Sequence[Sequence[int]],
        goal: Goal,
        *,
        config: SpanDistillConfig,
        dtype: torch.dtype,
        name: str,
        work: Path,
        tensorboard: Path,
        events: Emitter,
    ) -> None:
        """plan: the lessons of each step. work: the folder of its checkpoints."""
        self.device = device_here()
        self.model, self.tokenizer = model.to(self.device), tokenizer
        self.lessons, self.validation, self.plan = lessons, validation, plan
        self.goal, self.config, self.dtype = goal, config, dtype
        self.name, self.work, self.tensorboard, self.events = name, work, tensorboard, events
        self.parameters = [one for one in model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self._sized(matrices=True), "weight_decay": config.weight_decay},
                {"params": self._sized(matrices=False), "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self.taught = any(one.teacher is not None for one in (*lessons, *validation))
        self.state = _State()
        own = [len(one.window.ids) for one in lessons]
        self.tokens = [sum(own[number] for number in step) for step in plan]

    def run(self, last_step: int, patience: int, seed: int) -> Trained:
        """Train up to `last_step`, though the rate follows the whole plan, or until `patience`
        validations brought nothing better (0: never); end with the best weights.

        Errors: TrainingError for a loss that is not finite, or a damaged checkpoint.
        """
        torch.manual_seed(seed)
        self.work.mkdir(parents=True, exist_ok=True)
        found = checkpoints.newest(self.work)
        if found is None:
            shutil.rmtree(self.tensorboard, ignore_errors=True)
        else:
            self._load(found)
        board = open_board(self.tensorboard, None if found is None else self.state.step)
        every = max(1, -(-len(self.plan) // self.config.validations))
        saved = time.monotonic()
        if found is None:
            self._validate(board)
            self._save()
        while self.state.step < last_step and not self._is_over(patience):
            self._step(board)
            due = self.state.step % every == 0 or self.state.step == last_step
            if due:
                self._validate(board)
            if due or time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                self._save()
                saved = time.monotonic()
        board.close()
        self._use(self.work / f"checkpoint-{self.state.best_step}")
        return Trained(
            steps=self.state.step,
            tokens=sum(self.tokens[: self.state.step]),
            stopped_early=self.state.step < last_step,
            best_step=self.state.best_step,
            history=self.state.history,
        )

    def gradients(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """Add the gradient of the mean loss over these windows; the figures of the step."""
        sums: dict[str, float] = {}
        for some in micros(lessons, self.config.micro_tokens):
            loss, found = self._loss(some, self.goal)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The loss is not a finite number at step {self.state.step + 1}, rows "
                    f"{', '.join(one.row for one in some[:8])}.",
                    "Lower distill.learning_rate, or use distill.precision: fp32. The last good "
                    "checkpoint is kept.",
                )
            torch.autograd.backward(loss / len(lessons))
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        means = {name: value / len(lessons) for name, value in sums.items()}
        return means if self.goal.kd_weight else {name: means[name] for name in ("loss", "ce")}

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Means over the held-out windows: the goal's loss, cross-entropy, and the divergence from
        the teacher where there is one, whatever the goal's weights."""
        self.model.eval()
        sums: dict[str, float] = {}
        for some in micros(self.validation, self.config.micro_tokens):
            _, found = self._loss(some, self.goal)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        count = len(self.validation)
        return {name: value / count for name, value in sums.items()}

    def _loss(self, lessons: Sequence[Lesson], goal: Goal) -> tuple[Tensor, dict[str, float]]:
        """The goal's sum over windows, and each unweighted term's."""
        batch = batch_of(self.model, self.tokenizer, lessons)
        places, targets = batch.places.to(self.device), batch.targets.to(self.device)
        inputs = {name: value.to(self.device) for name, value in batch.inputs.items()}
        with torch.autocast(self.device.type, torch.bfloat16, self.dtype == torch.bfloat16):
            out = self.model(**inputs)
        starts, ends = out.start_logits, out.end_logits
        ce = ce_sum(starts, ends, places, targets)
        loss = goal.ce_weight * ce
        found = {"ce": float(ce.detach())}
        if self.taught:  # windows that the teacher did not read add nothing
            kd = kd_sum(starts, ends, places, batch.teacher.to(self.device), goal.temperature)
            found["kd"] = float(kd.detach())
            if goal.kd_weight:
                loss = loss + goal.kd_weight * kd
        return loss, {"loss": float(loss.detach()), **found}

    def _step(self, board: Any) -> None:
        number = self.state.step
        self.model.train()
        figures = self.gradients([self.lessons[one] for one in self.plan[number]])
        most = self.config.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, most))
        if not math.isfinite(norm):
            raise TrainingError(
                f"The gradient is not a finite number at step {number + 1}.",
                "Lower distill.learning_rate. The last good checkpoint is kept.",
            )
        rate = self.config.learning_rate * rate_factor(
            number, len(self.plan), round(self.config.warmup_ratio * len(self.plan)), "linear"
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        done, tokens = self.state.step, sum(self.tokens[: self.state.step])
        figures |= {"grad_norm": norm, "learning_rate": rate}
        self.state.history["steps"].append({"step": done, "tokens": tokens, **figures})
        self._tell(board, "", figures)
        self.events.progress(done, len(self.plan), "steps", step=self.name, tokens=tokens)

    def _validate(self, board: Any) -> None:
        figures = self.held_out()
        done = self.state.step
        row = {"step": done, "tokens": sum(self.tokens[:done]), **figures}
        self.state.history["validation"].append(row)
        self._tell(board, "validation_", figures)
        if figures["loss"] < self.state.best_loss:
            self.state.best_loss, self.state.best_step = figures["loss"], done
            self.state.waited = 0
        else:
            self.state.waited += 1

    def _is_over(self, patience: int) -> bool:
        return bool(patience) and self.state.waited >= patience

    def _tell(self, board: Any, prefix: str, figures: Mapping[str, float]) -> None:
        place = "eval" if prefix else "train"
        for name, value in figures.items():
            self.events.metric(prefix + name, value, step=self.state.step, model=self.name)
            board.add_scalar(f"{place}/{name}", value, self.state.step)

    def _sized(self, *, matrices: bool) -> list[Tensor]:
        """Weights that decay are matrices; biases and norms stay as they are."""
        return [one for one in self.parameters if (one.dim() > 1) == matrices]

    def _save(self) -> None:
        """Write, mark as complete, and only then delete older ones (all but the best)."""
        target = self.work / f"checkpoint-{self.state.step}"
        shutil.rmtree(target, ignore_errors=True)
        moments = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            moments["random_cuda"] = torch.cuda.get_rng_state()
        for number, one in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(one, {}).items():
                moments[f"{number}.{name}"] = value.detach().cpu().contiguous()
        with disk_errors(target, "write"):
            target.mkdir(parents=True)
            save_file(self._weights(), target / WEIGHTS)
            save_file(moments, target / OPTIMIZER)
        write_json(target / STATE, vars(self.state))
        checkpoints.mark_complete(target)
        checkpoints.keep_only(self.work, {self.state.step, self.state.best_step})

    def _weights(self) -> dict[str, Tensor]:
        return {name: one.detach().cpu().clone() for name, one in self.model.named_parameters()}

    def _load(self, checkpoint: Path) -> None:
        """Go on from there. Errors: TrainingError if it is damaged."""
        self._use(checkpoint)
        with checkpoints.readable(checkpoint):
            self.state = _State(**read_json(checkpoint / STATE))
            moments = load_file(checkpoint / OPTIMIZER)
            torch.set_rng_state(moments.pop("random"))
            if "random_cuda" in moments:
                torch.cuda.set_rng_state(moments.pop("random_cuda"))
            for name, value in moments.items():
                number, _, part = name.partition(".")
                one = self.parameters[int(number)]
                kept = value if part == "step" else value.to(self.device)
                self.optimizer.state[one][part] = kept

    def _use(self, checkpoint: Path) -> None:
        """Take its weights. Errors: TrainingError if it is damaged."""
        with checkpoints.readable(checkpoint), torch.no_grad():
            found = load_file(checkpoint / WEIGHTS)
            for name, one in self.model.named_parameters():
                one.copy_(found[name])
