"""The loss of a micro-batch: every term of the objective, from one pass of each model.

In: student, teacher's signal, objective; micro-batches, and what each term is divided by. Out: the
loss with its gradient, and the sums it is made of. Knows nothing of optimizers or steps.

    student pass --+-- last states ---- fused.py: divergence, cross-entropy
    teacher pass --+-- layers' states - layers.py: squared error, cosine
                   +-- queries, keys -- maps.py: attention maps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from potstill.distill import losses
from potstill.distill.aligned import AlignedTeacher, AlignedTokens, source_of
from potstill.distill.attention import Seen, recorded
from potstill.distill.batches import MicroBatch, Row
from potstill.distill.flops import Cost, step_flops
from potstill.distill.fused import Scores, Terms, linear_scores
from potstill.distill.layers import LayerStates, hidden_sums, layer_pairs, projection_for
from potstill.distill.map_sums import map_sums
from potstill.distill.mixture import Mixture, Teachers, parts_of
from potstill.distill.objective import Objective
from potstill.distill.schedules import Weight, highest, weight_at
from potstill.distill.signals import (
    HiddenStates,
    LiveTeacher,
    Ranked,
    TeacherSignal,
    TeacherTokens,
    TopK,
)
from potstill.distill.spans import aligned_scores
from potstill.errors import TrainingError
from potstill.models.body import body_of, layers_of
from potstill.models.output import output_layer


@dataclass(frozen=True)
class Weights:
    """The weights of all terms at one step."""

    kd: float = 0.0
    ce: float = 0.0
    hidden_mse: float = 0.0
    hidden_cosine: float = 0.0
    attention: float = 0.0

    @classmethod
    def at(cls, objective: Objective, step: int, steps: int) -> Weights:
        """Those of 0-based `step` of `steps` planned ones."""
        return cls._of(objective, lambda weight: weight_at(weight, step, steps))

    @classmethod
    def highest(cls, objective: Objective) -> Weights:
        """The largest that each ever has."""
        return cls._of(objective, highest)

    @classmethod
    def _of(cls, objective: Objective, value: Callable[[Weight], float]) -> Weights:
        return cls(
            value(objective.kd_weight),
            value(objective.ce_weight),
            value(objective.hidden.mse_weight),
            value(objective.hidden.cosine_weight),
            value(objective.attention.weight),
        )

    def alone(self) -> Iterator[tuple[str, Weights]]:
        """Each term that has a weight, without the others."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value:
                yield one.name, replace(Weights(), **{one.name: value})


COUNTED_BY = {
    "kd": "kd",
    "ce": "ce",
    "hidden_mse": "hidden",
    "hidden_cosine": "hidden",
    "attention": "attention",
}
"""Which active tokens a term's sum is divided by."""


@dataclass(frozen=True)
class Seeing:
    """What a pass of one model left: states of layers (from 1), queries and keys (from 0)."""

    states: Mapping[int, Tensor]
    attention: Mapping[int, Seen]


@contextmanager
def watched(
    model: Any,
    hidden: Sequence[tuple[int, int]],
    maps: Sequence[tuple[int, int]],
    *,
    side: int,
) -> Iterator[Seeing]:
    """Within it, a pass of `model` leaves what these pairs of layers (from 1) need of its side."""
    with ExitStack() as stack:
        states: Mapping[int, Tensor] = {}
        attention: Mapping[int, Seen] = {}
        if hidden:
            states = stack.enter_context(LayerStates(model, [pair[side] for pair in hidden]))
        if maps:
            attention = stack.enter_context(recorded([pair[side] - 1 for pair in maps]))
        yield Seeing(states, attention)


def teacher_cost(signal: TeacherSignal | AlignedTeacher) -> Cost | None:
    """Of a live teacher all, of a file of states the output layer alone, of words nothing; of
    several teachers the sum, each by its part of the rows."""
    if isinstance(signal, Teachers):
        asked = [float(one) for one in (signal.weights > 0).float().mean(1)]
        costs = [teacher_cost(one) or Cost() for one in signal.signals]
        return sum((one.times(share) for one, share in zip(costs, asked, strict=True)), Cost())
    source = source_of(signal)
    if isinstance(source, LiveTeacher):
        return Cost.of(source.model)
    output = getattr(source, "output", None)
    return None if output is None else Cost(0.0, 0.0, 2.0 * output.weight.numel())


class TermLoss:
    """The objective for one student and one source of the teacher's distribution."""

    def __init__(
        self,
        student: Any,
        signal: TeacherSignal | AlignedTeacher,
        objective: Objective,
        *,
        vocabulary: int,
        dtype: torch.dtype,
    ) -> None:
        """Errors: TrainingError for a layer map that does not fit, or a teacher that is a file
        where a term needs its layers."""
        self.student, self.signal, self.objective = student, signal, objective
        self.vocabulary, self.dtype = vocabulary, dtype
        self.divergence = losses.mixture(objective.shares, objective.parameters)
        self.taught = bool(objective.active.kd) or objective.needs_live_teacher
        self.student_cost = Cost.of(student)
        self.teacher_cost = teacher_cost(signal)
        self.hidden_pairs: list[tuple[int, int]] = []
        self.map_pairs: list[tuple[int, int]] = []
        self.projection = None
        if not objective.needs_live_teacher:
            return
        if not isinstance(signal, LiveTeacher):
            raise TrainingError(
                "Hidden states and attention maps need the teacher itself, not a file.",
                "Set distill.signal: live.",
            )
        configs = [body_of(model).config for model in (student, signal.model)]
        depths = [len(layers_of(body_of(model))) for model in (student, signal.model)]
        if objective.hidden.used:
            self.hidden_pairs = layer_pairs(objective.hidden.layers, *depths)
            ours, theirs = (int(config.hidden_size) for config in configs)
            always = objective.hidden.projection == "always"
            self.projection = projection_for(self.hidden_pairs, ours, theirs, asked=always)
        if objective.attention.used:
            self.map_pairs = layer_pairs(objective.attention.layers, *depths)
            if any(getattr(config, "attn_logit_softcapping", None) for config in configs):
                raise TrainingError(
                    "The attention scores of these models are capped, so their maps cannot be "
                    "compared.",
                    "Set distill.attention.weight to 0; hidden states can be compared.",
                )
        if self.projection is not None:
            self.projection.to(next(student.parameters()).device)

    def __call__(
        self,
        rows: Sequence[Row],
        batch: MicroBatch,
        weights: Weights,
        totals: Mapping[str, float],
        *,
        details: bool = False,
    ) -> tuple[Tensor, dict[str, float]]:
        """The batch's share of the step's loss, and its unweighted sums over active tokens.

        totals: active tokens of each term in the whole step. THE reducer divides here, and
        nowhere else. Sums have the names of `Weights`; with `details` also agreement and both
        entropies, over the tokens that are taught.
        """
        scales = {
            term: getattr(weights, term) / max(1.0, totals[counted])
            for term, counted in COUNTED_BY.items()
        }
        hidden = bool(scales["hidden_mse"] or scales["hidden_cosine"])
        watching = (self.hidden_pairs if hidden else [], self.map_pairs * bool(scales["attention"]))
        said, theirs = None, None
        if scales["kd"] or any(watching):
            with watched(getattr(self.signal, "model", None), *watching, side=1) as theirs:
                said = self.signal.tokens(rows, batch)
        with watched(self.student, *watching, side=0) as ours:
            states = self.states(batch)
        loss, kd, scores = self.output_terms(
            states, said if scales["kd"] else None, batch, scales["kd"], scales["ce"], details
        )
        sums = {"kd": kd, "ce": float((scores.ce * batch.ce_counts).sum())}
        if hidden:
            assert theirs is not None
            mse, cosine = hidden_sums(
                self.hidden_pairs,
                self.projection,
                ours.states,
                theirs.states,
                batch.positions,
                batch.hidden_counts,
                mse=scales["hidden_mse"] > 0,
                cosine=scales["hidden_cosine"] > 0,
            )
            loss = loss + scales["hidden_mse"] * mse + scales["hidden_cosine"] * cosine
            sums |= {"hidden_mse": float(mse.detach()), "hidden_cosine": float(cosine.detach())}
        if scales["attention"]:
            assert theirs is not None
            value = map_sums(self.map_pairs, batch, ours.attention, theirs.attention)
            loss = loss + scales["attention"] * value
            sums["attention"] = float(value.detach())
        if details and not isinstance(said, AlignedTokens):
            taught = batch.kd_counts * (scales["kd"] != 0)
            known, words = ["student_entropy"], parts_of(said)
            if words and all(isinstance(one, HiddenStates | TopK) for one in words):
                known.append("agreement")
            if words and all(isinstance(one, HiddenStates) for one in words):
                known.append("teacher_entropy")
            for name in known:
                sums[name] = float((getattr(scores, name) * taught).sum())
        return loss, sums

    def output_terms(
        self,
        states: Tensor,
        said: TeacherTokens | Mixture | AlignedTokens | None,
        batch: MicroBatch,
        kd: float,
        ce: float,
        details: bool = False,
    ) -> tuple[Tensor, float, Scores]:
        """Divergence and cross-entropy of a batch with these scales; the divergence's sum.

        states: of the batch's predictions, [N, d]. The third are the figures of its tokens.
        """
        targets, ce_weights = batch.targets, batch.ce_counts * ce

        def score(
            teacher: TeacherTokens | Mixture | None, kd_weights: Tensor, weights: Tensor
        ) -> Scores:
            return self.scores(states, teacher, targets, kd_weights, weights, details=details)

        if isinstance(said, AlignedTokens):
            settings = self.objective.alignment
            return aligned_scores(score, said, ce_weights, kd, self.divergence, settings)
        scores = score(said, batch.kd_counts * kd, ce_weights)
        return scores.loss, float((scores.kd * batch.kd_counts).sum()), scores

    def flops(self, batch: MicroBatch) -> float:
        """Useful operations of training on the batch."""
        if isinstance(self.signal, AlignedTeacher) and self.taught:
            theirs = self.signal.read(batch)
            own = step_flops(batch, self.student_cost, None)
            cost = self.teacher_cost
            return own + (0.0 if cost is None else cost.forward(theirs, len(theirs.targets)))
        return step_flops(batch, self.student_cost, self.teacher_cost if self.taught else None)

    def teacher_is_broken(self, rows: Sequence[Row], batch: MicroBatch) -> bool:
        """Whether what the teacher says of the batch is not all finite."""
        if not self.taught:
            return False
        said = self.signal.tokens(rows, batch)
        if isinstance(said, AlignedTokens):
            return not said.finite
        numbers = [
            one.states if isinstance(one, HiddenStates | Ranked) else one.log_p
            for one in parts_of(said)
        ]
        return not all(bool(torch.isfinite(one).all()) for one in numbers)

    def scores(
        self,
        states: Tensor,
        said: TeacherTokens | Mixture | None,
        targets: Tensor,
        kd_weights: Tensor,
        ce_weights: Tensor,
        divergence: losses.LogDivergence | None = None,
        temperature: float | None = None,
        *,
        details: bool = False,
    ) -> Scores:
        """Divergence (the objective's, or another) and cross-entropy of N predictions.

        states: [N, d]; said: what the teacher says of them, or several; targets, weights: [N].
        """

        def score(states: Tensor, said: TeacherTokens | None, *terms: Tensor) -> Scores:
            return linear_scores(
                states,
                output_layer(self.student),
                said,
                Terms(*terms),
                vocabulary=self.vocabulary,
                divergence=divergence or self.divergence,
                temperature=temperature or self.objective.temperature,
                dtype=self.dtype,
                details=details,
            )

        if isinstance(said, Mixture):
            return said.scores(states, targets, kd_weights, ce_weights, score)
        return score(states, said, targets, kd_weights, ce_weights)

    def states(self, batch: MicroBatch) -> Tensor:
        """The student's last hidden states where something is predicted: [N, d]."""
        device = batch.input_ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            states = body_of(self.student)(**batch.inputs()).last_hidden_state
        chosen: Tensor = states.flatten(0, 1)[batch.positions]
        return chosen
