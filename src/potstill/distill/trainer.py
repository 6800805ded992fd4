"""The trainer: transformers' Trainer with the objective, the one reducer and exact resume.

In: a student, the teacher's signal, rows and a plan of steps. Out: steps of training, held-out
figures, whole checkpoints. `train.py` sets it up and runs it. Knows nothing of stages or surgery.

A data item of this Trainer is a whole optimizer step, a list of micro-batches. `training_step`
goes through them; `compute_loss` divides each term's sum by that term's active tokens of the
whole step. So Trainer's own division by accumulation steps has nothing to divide, and the
gradient does not depend on how a step was split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from potstill.distill import checkpoints, losses
from potstill.distill.batches import (
    ActiveTokens,
    Micro,
    MicroBatch,
    Row,
    RowSet,
    collate,
    split_step,
)
from potstill.distill.config import DistillConfig, Tokens
from potstill.distill.fused import Scores, Terms, linear_scores
from potstill.distill.signals import TeacherSignal
from potstill.errors import TrainingError
from potstill.models.surgery import body_of, output_weight

WSD_DECAY = 0.2
VALIDATION_TOKENS = 4096


@dataclass(frozen=True)
class Objective:
    """What a student is trained for. A weight of 0 leaves its term out."""

    kd_weight: float
    kd_tokens: Tokens
    ce_weight: float
    ce_tokens: Tokens
    temperature: float = 1.0
    divergence: str = "forward_kl"
    divergence_parameter: float | None = None

    @property
    def active(self) -> ActiveTokens:
        """Which tokens the terms count."""
        return ActiveTokens(
            kd=self.kd_tokens if self.kd_weight else None,
            ce=self.ce_tokens if self.ce_weight else None,
        )

    @property
    def log_divergence(self) -> losses.LogDivergence:
        """The divergence as `fused.py` wants it."""
        return losses.by_name(self.divergence, self.divergence_parameter)


@dataclass(frozen=True)
class Step:
    """One optimizer step: micro-batches, and the active tokens that each term is divided by."""

    batches: tuple[MicroBatch, ...]
    kd_tokens: float
    ce_tokens: float


class Steps(Dataset[Step]):
    """The planned steps as a data set; tensors are made when a step is asked for."""

    def __init__(
        self,
        rows: Sequence[Row],
        plan: Sequence[Sequence[Micro]],
        active: ActiveTokens,
        padding: int,
    ) -> None:
        self.rows, self.plan, self.active, self.padding = rows, plan, active, padding

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Step:
        return make_step(
            [collate(self.rows, micro, self.active, self.padding) for micro in self.plan[number]]
        )

    def tokens(self) -> list[int]:
        """Real tokens trained on after each step."""
        total, sums = 0, []
        for step in self.plan:
            families = (family for micro in step for family in micro)
            total += sum(len(self.rows[row].ids) for family in families for row in family)
            sums.append(total)
        return sums


def make_step(batches: Sequence[MicroBatch]) -> Step:
    """Micro-batches as one step, with its active tokens counted over all of them."""
    return Step(
        tuple(batches),
        kd_tokens=sum(float(batch.kd_counts.sum()) for batch in batches),
        ce_tokens=sum(float(batch.ce_counts.sum()) for batch in batches),
    )


class DistillTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, whose batches are whole steps and whose loss is the objective."""

    def __init__(
        self,
        student: Any,
        signal: TeacherSignal,
        validation_signal: TeacherSignal,
        objective: Objective,
        steps: Steps,
        validation: RowSet,
        *,
        vocabulary: int,
        dtype: torch.dtype,
        config: DistillConfig,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.lr_scheduler: Any = None
        self.control: Any = None
        self.signal, self.validation_signal = signal, validation_signal
        self.objective, self.steps, self.validation = objective, steps, validation
        self.vocabulary, self.dtype, self.config = vocabulary, dtype, config
        self.divergence = objective.log_divergence
        self.tokens_after = steps.tokens()
        self.figures: dict[str, float] = {}
        self._doing: Step | None = None
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=steps,
            eval_dataset=validation.rows,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to data

    def get_train_dataloader(self) -> DataLoader[Step]:
        """Steps in their planned order, one at a time; shuffling was done by the plan."""
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_first)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Warm-up whose first step already learns, then cosine or stable-and-decay."""
        if self.lr_scheduler is None:
            planned = len(self.steps)  # a training that ends before keeps the plan's schedule
            warmup = round(self.config.warmup_ratio * planned)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer if optimizer is not None else self.optimizer,
                lambda step: rate_factor(step, planned, warmup, self.config.schedule),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: Any, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over all micro-batches of a step; returns the step's loss."""
        model.train()
        self._doing = inputs
        kd_sum = ce_sum = 0.0
        loss = torch.zeros((), device=self.args.device)
        for batch in (one.to(self.args.device) for one in inputs.batches):
            part, scores = self._loss(model, batch, inputs)
            if not torch.isfinite(part):
                self._stop_for_bad_numbers(batch.rows, "loss")
            self.accelerator.backward(part)
            loss += part.detach()
            kd_sum += float((scores.kd * batch.kd_counts).sum())
            ce_sum += float((scores.ce * batch.ce_counts).sum())
        if self.objective.kd_weight:
            self.figures["kd"] = kd_sum / max(1, inputs.kd_tokens)
        if self.objective.ce_weight:
            self.figures["ce"] = ce_sum / max(1, inputs.ce_tokens)
        return loss

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> None:
        """Nothing: a `Step` carries the counts of its terms itself."""

    def floating_point_ops(self, inputs: Step) -> int:
        """Not counted: the Trainer's estimate knows neither the teacher nor the output layers."""
        return 0

    def compute_loss(
        self,
        model: Any,
        inputs: Step,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective over a whole step at once: the sum of `training_step`'s parts."""
        parts = [self._loss(model, batch, inputs) for batch in inputs.batches]
        loss = torch.stack([part for part, _ in parts]).sum()
        return (loss, [scores for _, scores in parts]) if return_outputs else loss

    def _loss(self, model: Any, batch: MicroBatch, step: Step) -> tuple[Tensor, Scores]:
        """One micro-batch's share of the step's loss: THE reducer, and the only division."""
        batch = batch.to(self.args.device)
        kd_scale = self.objective.kd_weight / max(1, step.kd_tokens)
        ce_scale = self.objective.ce_weight / max(1, step.ce_tokens)
        scores = self._scores(
            model,
            self.signal,
            self.steps.rows,
            batch,
            batch.kd_counts * kd_scale,
            batch.ce_counts * ce_scale,
            self.divergence,
        )
        return scores.loss, scores

    def _scores(
        self,
        model: Any,
        signal: TeacherSignal,
        rows: Sequence[Row],
        batch: MicroBatch,
        kd_weights: Tensor,
        ce_weights: Tensor,
        divergence: losses.LogDivergence,
        agreement: bool = False,
    ) -> Scores:
        with torch.autocast(
            batch.input_ids.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            states = body_of(model)(**batch.inputs()).last_hidden_state
        taught = bool((kd_weights != 0).any())
        return linear_scores(
            states.flatten(0, 1)[batch.positions],
            output_weight(model),
            signal.hidden(rows, batch) if taught else None,
            signal.weight if taught else None,
            Terms(batch.targets, kd_weights, ce_weights),
            vocabulary=self.vocabulary,
            divergence=divergence,
            temperature=self.objective.temperature if divergence is self.divergence else 1.0,
            dtype=self.dtype,
            agreement=agreement,
        )

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The held-out rows: the objective's loss, forward KL and cross-entropy, agreement."""
        figures = self.held_out()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Means over held-out tokens. Everything but `loss` means the same for every objective."""
        self.model.eval()
        rows = self.validation.rows
        sums = dict.fromkeys(
            ("kl", "kl_answer", "ce", "ce_answer", "agreement", "kd", "kd_answer"), 0.0
        )
        tokens = answers = 0.0
        plain = self.objective.divergence == "forward_kl" and self.objective.temperature == 1.0
        everything = ActiveTokens(kd="all", ce="answer")
        held_out = self.validation
        for micro in split_step(held_out.families, held_out.sizes, VALIDATION_TOKENS):
            batch = collate(rows, micro, everything, self.steps.padding).to(self.args.device)
            one = torch.ones(len(batch.targets), device=self.args.device)
            arguments = (self.model, self.validation_signal, rows, batch, one)
            scores = self._scores(*arguments, one, losses.forward_kl_rows, agreement=True)
            counts, in_answer = batch.kd_counts, batch.ce_counts
            kd = scores.kd
            if self.objective.kd_weight and not plain:
                kd = self._scores(*arguments, 0 * one, self.divergence).kd
            assert scores.agree is not None
            for name, values in (("kl", scores.kd), ("ce", scores.ce), ("kd", kd)):
                sums[name] += float((values * counts).sum())
                sums[f"{name}_answer"] += float((values * in_answer).sum())
            sums["agreement"] += float((scores.agree * counts).sum())
            tokens, answers = tokens + float(counts.sum()), answers + float(in_answer.sum())
        self.model.train()
        means = {
            name: total / max(1, answers if name.endswith("_answer") else tokens)
            for name, total in sums.items()
        }
        kd_all, kd_answer = means.pop("kd"), means.pop("kd_answer")
        objective = self.objective
        loss = objective.kd_weight * (kd_answer if objective.kd_tokens == "answer" else kd_all)
        loss += objective.ce_weight * (
            means["ce_answer"] if objective.ce_tokens == "answer" else means["ce"]
        )
        return {"loss": loss, **means}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms and the tokens so far; what is logged is in the checkpoint's state."""
        if "loss" in logs:
            logs |= self.figures
        done = self.state.global_step
        logs["tokens"] = self.tokens_after[done - 1] if done else 0
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm before clipping. Errors: TrainingError if it is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            assert self._doing is not None
            rows = [row for batch in self._doing.batches for row in batch.rows]
            self._stop_for_bad_numbers(rows, "gradient")
        return norm

    def _stop_for_bad_numbers(self, rows: Sequence[int], what: str) -> None:
        names = ", ".join(self.steps.rows[row].id for row in list(rows)[:8])
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise TrainingError(
            f"The {what} is not a finite number at step {self.state.global_step + 1}, "
            f"rows {names}{more}.",
            "Lower distill.learning_rate, or use distill.precision: fp32. The last good "
            "checkpoint is kept.",
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark as complete, and only then delete older ones (all but the best)."""
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir)
        checkpoints.mark_complete(folder / f"checkpoint-{self.state.global_step}")
        checkpoints.keep_only(folder, {self.state.global_step, self.state.best_global_step})


def rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the highest learning rate at 0-based `step` of `steps`; never 0 within them."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    decay = max(1, round(WSD_DECAY * steps))
    return max(0.0, min(1.0, (steps - step) / decay))


def _first(items: list[Step]) -> Step:
    return items[0]
