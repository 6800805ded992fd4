"""Several teachers' words of the same tokens as one signal, and the divergence to all of them.

In: the signals of single teachers, and what each one's say is in each row. Out: a signal whose
tokens have parts, and their scores as one. Knows nothing of models, files or steps.

    D(token) = sum_i share_i(token) * D(teacher_i || student),   sum_i share_i(token) = 1

Where `confidence` is on, a teacher's share of a token is its weight times the probability of its
likeliest word there (the maximum softmax probability: Hendrycks and Gimpel 2017,
arXiv:1610.02136), at the objective's temperature, divided by the sum over the teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.distill.batches import MicroBatch, Row
from potstill.distill.fused import Scores
from potstill.distill.signals import HiddenStates, OneTeacher, TeacherTokens, TopK
from potstill.distill.sparse import LOGITS_BYTES, exact_logits


@dataclass(frozen=True)
class Part:
    """What one teacher says of the tokens that it has a share in."""

    teacher: int
    """Its place among them."""
    said: TeacherTokens
    at: Tensor
    """[n] int64: which of the batch's N predictions, in order."""
    share: Tensor
    """[n] fp32."""


@dataclass(frozen=True)
class Mixture:
    """What several teachers say of N tokens. Every token is in at least one part."""

    parts: tuple[Part, ...]

    def scores(
        self,
        states: Tensor,
        targets: Tensor,
        kd_weights: Tensor,
        ce_weights: Tensor,
        score: Callable[[Tensor, TeacherTokens, Tensor, Tensor, Tensor], Scores],
    ) -> Scores:
        """The parts' scores as one: divergences and what is seen of teachers by shares, the
        cross-entropy of each token once.

        states: [N, d]; targets, weights: [N]. score: of (states, said, targets, kd weights, ce
        weights) of one part.
        """
        count = len(targets)
        figures = {
            name: states.new_zeros(count, dtype=torch.float32)
            for name in ("kd", "ce", "agreement", "student_entropy", "teacher_entropy")
        }
        loss = states.new_zeros((), dtype=torch.float32)
        unread = torch.ones(count, device=states.device)
        for part in self.parts:
            at = part.at
            ce = ce_weights[at] * unread[at]
            unread[at] = 0.0
            kd = kd_weights[at] * part.share
            found = score(states[at], part.said, targets[at], kd, ce)
            loss = loss + found.loss
            for name, values in figures.items():
                share = torch.ones_like(part.share) if name == "ce" else part.share
                values.index_add_(0, at, getattr(found, name) * share)
        return Scores(loss, **figures)


def parts_of(said: TeacherTokens | Mixture | None) -> list[TeacherTokens]:
    """What each teacher says; one entry for a single teacher."""
    if isinstance(said, Mixture):
        return [part.said for part in said.parts]
    return [] if said is None else [said]


class Teachers:
    """Several teachers of one set of rows, as one signal."""

    def __init__(
        self,
        signals: Sequence[OneTeacher],
        weights: Tensor,
        *,
        vocabulary: int,
        confidence: float | None = None,
    ) -> None:
        """weights: [teachers, rows], each column summing to 1; rows of one family have equal
        columns. vocabulary: real words. confidence: the temperature of the teachers' confidence,
        None: it has no part in their shares."""
        self.signals, self.weights = tuple(signals), weights
        self.vocabulary, self.confidence = vocabulary, confidence

    def tokens(self, rows: Sequence[Row], batch: MicroBatch) -> Mixture:
        """Each teacher is asked for the tokens in whose row it has a say, and for no others."""
        shares = self._weights(batch)
        heard = [
            (place, signal, (own != 0).nonzero()[:, 0], own)
            for place, (signal, own) in enumerate(zip(self.signals, shares, strict=True))
        ]
        parts = [
            Part(
                place,
                signal.tokens(rows, replace(batch, positions=batch.positions[at])),
                at,
                own[at],
            )
            for place, signal, at, own in heard
            if len(at)
        ]
        return Mixture(tuple(self._by_confidence(parts, len(batch.positions))))

    def _weights(self, batch: MicroBatch) -> Tensor:
        """[teachers, N]: the weights of the row, or rows, that each prediction belongs to."""
        device = batch.positions.device
        flat = torch.zeros(len(self.signals), batch.input_ids.numel(), device=device)
        for row, span in zip(batch.rows, batch.spans, strict=True):
            flat[:, span.flat().to(device)] = self.weights[:, row, None].to(device)
        return flat[:, batch.positions]

    def _by_confidence(self, parts: list[Part], count: int) -> list[Part]:
        if self.confidence is None:
            return parts
        raw = [part.share * self._sure(part.said, self.confidence) for part in parts]
        total = torch.zeros(count, device=raw[0].device)
        for part, share in zip(parts, raw, strict=True):
            total.index_add_(0, part.at, share)
        return [
            replace(part, share=share / total[part.at])
            for part, share in zip(parts, raw, strict=True)
        ]

    @torch.no_grad()
    def _sure(self, said: TeacherTokens, temperature: float) -> Tensor:
        """[n]: the probability of the teacher's likeliest word."""
        if isinstance(said, TopK):
            return said.log_p[:, 0].exp()  # the likeliest stands first
        assert isinstance(said, HiddenStates)
        found = []
        for states in torch.split(said.states, max(1, LOGITS_BYTES // (4 * self.vocabulary))):
            logits = exact_logits(said.output, states, self.vocabulary) / temperature
            found.append((logits.amax(-1) - logits.logsumexp(-1)).exp())
        return torch.cat(found)
