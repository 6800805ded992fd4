"""The terms of the output layer, computed plainly: what the probe compares the machinery with.

In: a loss, its teacher or what several teachers said, a few rows. Out: values and gradients. Knows
nothing of packing, fusing, caching or splitting, and uses none of it.

A teacher in bf16, or a file of its rounded states, says something a little else than the teacher
read row by row. Where such states are at hand the gradient is computed from them, so that rounding
cannot hide a mistake nor be taken for one; how far they are from the teacher is its own figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill import losses
from potstill.distill.aligned import AlignedTeacher
from potstill.distill.batches import MicroBatch, Row, RowSet
from potstill.distill.probe_aligned import plain_spans
from potstill.distill.signals import HiddenStates, LiveTeacher
from potstill.distill.sparse import exact_logits
from potstill.distill.terms import TermLoss
from potstill.models.body import body_of


@dataclass(frozen=True)
class Told:
    """What several teachers say of the probe's rows, kept while each of them was in memory."""

    logits: Sequence[Mapping[Row, Tensor]]
    """Of each teacher, by row: [L - 1, V]."""
    weights: Mapping[Row, Tensor]
    """By row: each teacher's weight."""
    confident: bool
    """Whether weights are multiplied by the probability of the teacher's likeliest word."""

    def shares(self, row: Row, logits: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Each teacher's share of each token, [L - 1]. logits: what each says, [L - 1, V]."""
        weights = self.weights[row].to(logits[0].device)
        raw = [weight.expand(len(one)) for weight, one in zip(weights, logits, strict=True)]
        if self.confident:
            sure = [(one / temperature).softmax(-1).amax(-1) for one in logits]
            raw = [weight * one for weight, one in zip(raw, sure, strict=True)]
        total = torch.stack(raw).sum(0)
        return [weight / total for weight in raw]


@dataclass(frozen=True)
class Heard:
    """What the machinery gives the loss as the teachers' words on the probe's rows."""

    batch: MicroBatch
    said: Mapping[int, tuple[Tensor, HiddenStates]]
    """By teacher: flat positions [n] in the batch, and its words there."""

    def logits(self, teacher: int, number: int, plain: Tensor) -> tuple[Tensor, Tensor]:
        """[L - 1, V] of a row, and which of its tokens were said, [L - 1] bool.

        plain: the teacher's own, which stay where nothing was said.
        """
        if teacher not in self.said:  # it has no say here
            return plain, torch.zeros(len(plain), dtype=torch.bool, device=plain.device)
        positions, said = self.said[teacher]
        flat = self.batch.spans[self.batch.rows.index(number)].flat()[:-1]
        known = {int(place): index for index, place in enumerate(positions)}
        there = torch.tensor([int(place) in known for place in flat], device=plain.device)
        places = [known[int(place)] for place in flat if int(place) in known]
        logits = plain.float().clone()
        logits[there] = exact_logits(said.output, said.states[places], plain.shape[1])
        return logits, there


@dataclass(frozen=True)
class Found:
    """A loss and its gradient on all of the student's vectors (norms, biases), in one row.

    They stand in every layer, so a term of any layer shows in them, and they are small.
    """

    value: float
    gradient: Tensor


class Plain:
    """The terms of the output layer, row by row, from both models' full logits.

    One row's logits and graph exist at a time. `kd` is T^2 times the mixture of divergences, `ce`
    the cross-entropy; each the mean over its active tokens.
    """

    def __init__(
        self,
        loss: TermLoss,
        teacher: LiveTeacher,
        data: RowSet,
        numbers: Sequence[int],
        told: Told | None,
        heard: Heard | None = None,
    ) -> None:
        """numbers: of the rows. told: by several teachers; else `teacher` is asked. heard: rounded
        words, from which the divergence is computed."""
        self.loss, self.teacher, self.data, self.told = loss, teacher, data, told
        self.heard = heard
        self.misheard = 0.0
        """Largest of all rows and teachers: mean KL of what was heard to what the teacher says."""
        objective = loss.objective
        tokens = {"kd": objective.kd_tokens, "ce": objective.active.ce or "all"}
        sums: dict[str, Tensor] = {}
        values, counts = dict.fromkeys(tokens, 0.0), dict.fromkeys(tokens, 0)
        read = [data.read_by_teacher.rows[number] for number in numbers]
        alone = told is None and objective.active.kd
        own = teacher.logits(read) if alone else iter(())
        for number in numbers:
            row = data.rows[number]
            logits = self._student_logits(row)
            targets = torch.tensor(row.ids[1:], device=logits.device)
            terms = {"ce": F.cross_entropy(logits, targets, reduction="none")}
            if objective.active.kd:
                terms["kd"] = self._divergence(number, next(own, None), logits)
            for name, found in terms.items():
                first = max(1, row.answer_start) - 1 if tokens[name] == "answer" else 0
                if name == "kd" and data.teacher is not None:
                    first = 0  # only active spans are there
                part = gradient(loss, found[first:].sum(), keep=True)
                sums[name] = sums[name] + part.gradient if name in sums else part.gradient
                values[name] += part.value
                counts[name] += len(found) - first
        self.found = {
            name: Found(values[name] / max(1, counts[name]), total / max(1, counts[name]))
            for name, total in sums.items()
        }

    def _divergence(self, number: int, own: Tensor | None, logits: Tensor) -> Tensor:
        """own: the one teacher's logits [L, V]; None: there are several."""
        objective, signal = self.loss.objective, self.loss.signal
        temperature, row = objective.temperature, self.data.rows[number]
        if own is None:
            assert self.told is not None
            words = [one[row] for one in self.told.logits]
        elif isinstance(signal, AlignedTeacher):
            theirs = own[:-1, : signal.words].float()
            return plain_spans(signal, objective, self.data, number, logits, theirs)
        else:
            words = [own[:-1, : self.loss.vocabulary].float()]
        if self.heard is not None:
            words = [self._as_heard(place, number, one) for place, one in enumerate(words)]
        shares = [torch.ones(())]
        if self.told is not None:
            shares = self.told.shares(row, words, temperature)
        log_q = (logits / temperature).log_softmax(-1)
        values = logits.new_zeros(len(logits))
        for theirs, part in zip(words, shares, strict=True):
            log_p = (theirs / temperature).log_softmax(-1)
            for name, share in objective.shares.items():
                divergence = losses.by_name(name, objective.parameters.get(name))
                values = values + part.to(values.device) * share * divergence(log_q, log_p)
        return values * temperature**2

    def _as_heard(self, teacher: int, number: int, plain: Tensor) -> Tensor:
        assert self.heard is not None
        logits, there = self.heard.logits(teacher, number, plain)
        log_p, log_q = (one[there].float().log_softmax(-1) for one in (plain, logits))
        apart = float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
        self.misheard = max(self.misheard, apart / max(1, len(log_p)))
        return logits

    def _student_logits(self, row: Row) -> Tensor:
        ids = torch.tensor([row.ids], device=next(self.loss.student.parameters()).device)
        logits: Tensor = self.loss.student(input_ids=ids, use_cache=False).logits
        return logits[0, :-1, : self.loss.vocabulary].float()


def gradient(loss: TermLoss, value: Tensor, keep: bool = False) -> Found:
    """keep: the graph is needed again."""
    learning = [one for one in body_of(loss.student).parameters() if one.ndim == 1]
    found = torch.autograd.grad(value, learning, allow_unused=True, retain_graph=keep)
    flat = [
        (torch.zeros_like(one) if grad is None else grad).flatten().float()
        for one, grad in zip(learning, found, strict=True)
    ]
    return Found(float(value.detach()), torch.cat(flat))
