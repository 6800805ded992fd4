"""The trainer: transformers' Trainer with the objective, the one reducer and exact resume.

In: a student, the teacher's signal, rows and a plan of steps. Out: steps of training, held-out
figures, whole checkpoints. `train.py` sets it up and runs it. Knows nothing of stages or surgery.

A data item of this Trainer is a whole optimizer step, a list of micro-batches. `training_step`
goes through them; each term's sum is divided by that term's active tokens of the whole step
(`terms.py`). So Trainer's own division by accumulation steps has nothing to divide, and the
gradient depends neither on how a step was split nor on how many processes share it: each takes
every n-th micro-batch, and gradients are added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from potstill.distill import checkpoints, held_out
from potstill.distill.aligned import AlignedTeacher
from potstill.distill.batches import MicroBatch, RowSet
from potstill.distill.config import DistillConfig
from potstill.distill.diary import Meter
from potstill.distill.families import Family
from potstill.distill.objective import Objective
from potstill.distill.ranks import Ranks
from potstill.distill.schedules import rate_factor
from potstill.distill.signals import TeacherSignal
from potstill.distill.steps import Step, Steps
from potstill.distill.terms import COUNTED_BY, TermLoss, Weights
from potstill.errors import TrainingError

Found = TypeVar("Found")
PROJECTION = "projection.safetensors"
PROBE_TOKENS = 256
"""Tokens of a step on which each term's gradient is measured; at least one family."""


class DistillTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, whose batches are whole steps and whose loss is the objective."""

    def __init__(
        self,
        student: Any,
        signal: TeacherSignal | AlignedTeacher,
        validation_signal: TeacherSignal | AlignedTeacher,
        objective: Objective,
        steps: Steps,
        validation: RowSet,
        *,
        vocabulary: int,
        dtype: torch.dtype,
        config: DistillConfig,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
        meter: Meter | None = None,
    ) -> None:
        self.lr_scheduler: Any = None
        self.control: Any = None
        self.objective, self.steps, self.validation = objective, steps, validation
        self.validation_signal, self.config = validation_signal, config
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
        self.loss = TermLoss(student, signal, objective, vocabulary=vocabulary, dtype=dtype)
        self.meter = meter or Meter(0.0)
        if steps.ranks.count > 1:  # gradients are added up by the trainer; DDP would average
            self.accelerator.prepare_model = _as_it_is

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

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the student, and over the projection of hidden states if there is one."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.loss.projection is not None:
            optimizer.add_param_group(
                {"params": list(self.loss.projection.parameters()), "weight_decay": 0.0}
            )
        return optimizer

    def training_step(
        self, model: Any, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over all micro-batches of a step; returns the step's loss."""
        self.model.train()
        if self.loss.projection is not None:
            self.loss.projection.zero_grad()
        self._doing = inputs
        weights = Weights.at(self.objective, self.state.global_step, len(self.steps))
        self.figures = self._term_gradients(inputs, weights)
        total = torch.zeros((), device=self.args.device)
        sums: dict[str, float] = {}
        count = len(inputs.fillers) + len(inputs.batches)
        for number, batch in enumerate(inputs.fillers, 1):
            part, _ = self._part(batch, weights, inputs.totals)
            self._backward(part * 0.0, last=number == count)
        for number, batch in enumerate(inputs.batches, 1 + len(inputs.fillers)):
            part, found = self._part(batch, weights, inputs.totals)
            self._backward(part, last=number == count)
            total += part.detach()
            self.meter.flops += self.loss.flops(batch)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        ranks = self.steps.ranks
        self._add_up_gradients()
        self.figures |= self._means(ranks.sums(sums), inputs.totals, weights)
        self.figures |= inputs.figures
        return ranks.total(total)

    def _part(
        self, batch: MicroBatch, weights: Weights, totals: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """One micro-batch's share of the step's loss. Errors: TrainingError if it is not finite."""
        part, sums = self._within(
            lambda: self.loss(
                self._data.rows, batch.to(self.args.device), weights, totals, details=True
            )
        )
        if not torch.isfinite(part):
            self._stop_for_bad_numbers(batch.rows, "loss")
        return part, sums

    def _within(self, act: Callable[[], Found]) -> Found:
        """What `act` makes of the student: it is whole here."""
        return act()

    def _backward(self, part: Tensor, *, last: bool) -> None:
        """Add a part's gradients. last: of this process's parts of the step."""
        self.accelerator.backward(part)

    def _add_up_gradients(self) -> None:
        self.steps.ranks.add_up(self._parameters())

    def _means(
        self, sums: Mapping[str, float], totals: Mapping[str, float], weights: Weights
    ) -> dict[str, float]:
        """Each term that has a weight and an active token, unweighted, per active token; what was
        seen on the way."""
        means = {
            term: sums.get(term, 0.0) / totals[counted]
            for term, counted in COUNTED_BY.items()
            if getattr(weights, term) and totals[counted]
        }
        if weights.kd and totals["kd"]:
            for name in ("agreement", "student_entropy", "teacher_entropy"):
                if name in sums:
                    means[name] = sums[name] / totals["kd"]
        return means

    def _term_gradients(self, step: Step, weights: Weights) -> dict[str, float]:
        """Norm of each weighted term's gradient on some rows, at the steps after a validation.

        A term that is logged but moves nothing shows here as 0.
        """
        due = self.state.global_step % max(1, self.args.eval_steps or 1) == 0
        terms = list(weights.alone())
        if not (self.config.term_gradients and due and step.batches) or len(terms) < 2:
            return {}  # of one term it is the gradient norm itself
        data = self._data
        families: list[Family] = []
        tokens = 0
        for family in step.batches[0].families:
            if families and tokens + data.sizes[family] > PROBE_TOKENS:
                break
            families.append(family)
            tokens += data.sizes[family]
        batch = data.collate(families, self.steps.active, self.steps.padding)
        rows = (row for family in families for row in family)
        totals = data.active_counts(rows, self.steps.active)
        parameters = self._parameters()
        norms = {}
        self.model.eval()  # dropout here would change what is drawn for the step itself
        for term, alone in terms:
            if not totals[COUNTED_BY[term]]:
                continue
            part, _ = self._part(batch, alone, totals)
            found = torch.autograd.grad(part, parameters, allow_unused=True)
            squares = [float(one.double().square().sum()) for one in found if one is not None]
            norms[f"grad_norm_{term}"] = math.sqrt(sum(squares))
        self.model.train()
        return norms

    def batch_tokens(self) -> int:
        """Of the largest batch of the step that is being computed."""
        batches = self._doing.batches if self._doing else ()
        return max([batch.input_ids.numel() for batch in batches], default=0)

    @property
    def _data(self) -> RowSet:
        """The rows of the step that is being computed."""
        return self._doing.data if self._doing else self.steps.data

    def _parameters(self) -> list[Tensor]:
        """Everything that learns."""
        projection = self.loss.projection
        extra = [] if projection is None else list(projection.parameters())
        return [one for one in [*self.model.parameters(), *extra] if one.requires_grad]

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> None:
        """Nothing: a `Step` carries the counts of its terms itself."""

    def floating_point_ops(self, inputs: Step) -> int:
        """Not counted: the Trainer's estimate knows neither the teacher nor the output layers."""
        return 0

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The held-out rows: the objective's loss, forward KL and cross-entropy, agreement."""
        found = self.held_out()
        figures = self.steps.ranks.first(lambda: found)  # one verdict on the best and the end
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def held_out(self, ranks: Ranks | None = None) -> dict[str, float]:
        """`held_out.figures` of the student as it is, with the weights of the last step.

        ranks: who share the rows; None: all processes.
        """
        self.model.eval()
        steps = len(self.steps)
        found = held_out.figures(
            self.loss,
            self.validation_signal,
            self.validation,
            Weights.at(self.objective, steps - 1, steps),
            padding=self.steps.padding,
            ranks=ranks or self.steps.ranks,
        )
        self.model.train()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms and the tokens so far; what is logged is in the checkpoint's state."""
        if "loss" in logs:
            logs |= self.figures
        done = self.state.global_step
        logs["tokens"] = self.steps.tokens_after[done - 1] if done else 0
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips everything that learns, the projection too; returns the norm before."""
        return self.accelerator.clip_grad_norm_(self._parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm before clipping. Errors: TrainingError if it is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            assert self._doing is not None
            rows = [row for batch in self._doing.batches for row in batch.rows]
            self._stop_for_bad_numbers(rows, "gradient")
        return norm

    def _stop_for_bad_numbers(self, rows: Sequence[int], what: str) -> None:
        way = "Lower distill.learning_rate, or use distill.precision: fp32."
        assert self._doing is not None
        batches = (batch.to(self.args.device) for batch in self._doing.batches)
        if any(self.loss.teacher_is_broken(self._data.rows, batch) for batch in batches):
            what, way = "teacher's distribution", "Use distill.precision: fp32, or another teacher."
        names = ", ".join(self._data.rows[row].id for row in list(rows)[:8])
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise TrainingError(
            f"The {what} is not a finite number at step {self.state.global_step + 1}, "
            f"rows {names}{more}.",
            f"{way} The last good checkpoint is kept.",
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark as complete, and only then delete older ones (all but the best)."""
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        ranks = self.steps.ranks
        ranks.wait()
        if ranks.number == 0:
            if self.loss.projection is not None:
                save_file(self.loss.projection.state_dict(), checkpoint / PROJECTION)
            checkpoints.mark_complete(checkpoint)
            checkpoints.keep_only(folder, {self.state.global_step, self.state.best_global_step})
        ranks.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights. Errors: TrainingError if they are damaged; so the next two."""
        with checkpoints.readable(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimizer's state, and the projection that it belongs to."""
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with checkpoints.readable(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            if self.loss.projection is not None:
                self.loss.projection.load_state_dict(load_file(Path(checkpoint) / PROJECTION))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The state of random numbers."""
        with checkpoints.readable(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)


def _as_it_is(model: Any, **_: Any) -> Any:
    return model


def _first(items: list[Step]) -> Step:
    return items[0]
