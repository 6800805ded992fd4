"""What a teacher with another tokenizer says of a micro-batch, in the student's terms.

In: a teacher's signal over its own tokens, rows with their spans, a micro-batch of the student's.
Out: `AlignedTokens`: the teacher's log-likelihood of each span, and its distribution where spans
begin. Knows nothing of students' outputs or losses (`spans.py`).

    student's micro-batch --families--> the teacher's micro-batch of the same rows
                                                 |
    spans: log p(bytes), summed over the teacher's tokens <--+--> words that both have, as `TopK`
                                                                  or states, to be sorted (uld)

Two vocabularies have a word in common if both have a token of the same bytes. Where a template's
white space is part of a row's first token, it is taken off the words first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor

from potstill.distill.batches import MicroBatch, Row, RowSet
from potstill.distill.objective import Objective
from potstill.distill.recording import EVERY
from potstill.distill.signals import HiddenStates, Ranked, TeacherSignal, TopK
from potstill.distill.sparse import LOGITS_BYTES, top_k
from potstill.models.align import Span, Words, same_bytes
from potstill.models.output import OutputLayer, output_layer

PADDING = 0


@dataclass(frozen=True)
class AlignedTokens:
    """What the teacher says of S spans that begin at some of a batch's N predictions.

    A span of several rows, in their shared beginning, is there once for each of them.
    """

    starts: Tensor
    """[S] int64: the prediction with which each span begins."""
    members: Tensor
    """[M] int64: predictions of the student's that spans are made of."""
    owners: Tensor
    """[M] int64: of which span each is."""
    answer: Tensor
    """[S] bool: whether it is part of an answer."""
    counts: Tensor
    """[N] fp32: how many spans begin at each prediction."""
    log_p: Tensor | None
    """[S] fp32: the teacher's log-likelihood of each span's bytes; None if not asked for."""
    next: TopK | Ranked | None
    """[N]: its distribution where spans begin, elsewhere nothing; None if not asked for."""
    leads: tuple[tuple[bytes, bytes], ...]
    """[S]: of each span (`models/align.py`)."""
    likeliest: Tensor | None = None
    """[S] int64: the teacher's likeliest next token, by its own ids, where a span begins."""

    def only(self, chosen: Tensor) -> AlignedTokens:
        """The spans that are chosen, [S] bool, alone."""
        numbers = chosen.cumsum(0) - 1
        kept = chosen[self.owners]
        starts = self.starts[chosen]
        ones = torch.ones(len(starts), device=starts.device)
        return replace(
            self,
            starts=starts,
            members=self.members[kept],
            owners=numbers[self.owners[kept]],
            answer=self.answer[chosen],
            counts=torch.zeros_like(self.counts).index_add_(0, starts, ones),
            log_p=None if self.log_p is None else self.log_p[chosen],
            leads=tuple(compress(self.leads, chosen.tolist())),
            likeliest=None if self.likeliest is None else self.likeliest[chosen],
        )

    @property
    def finite(self) -> bool:
        """Whether all that the teacher says are finite numbers."""
        some = self.next.states if isinstance(self.next, Ranked) else None
        some = self.next.log_p.exp() if isinstance(self.next, TopK) else some  # log 0 is sound
        return all(bool(torch.isfinite(one).all()) for one in (self.log_p, some) if one is not None)


class CommonWords:
    """The words that two vocabularies share, byte for byte, by both their ids."""

    def __init__(self, student: Words, teacher: Words, sizes: tuple[int, int]) -> None:
        """sizes: rows of the student's and of the teacher's output layer that are words."""
        self.student, self.teacher, self.sizes = student, teacher, sizes
        self._maps: dict[tuple[bytes, bytes], tuple[Tensor, Tensor]] = {}

    def ids(self, leads: tuple[bytes, bytes] = (b"", b"")) -> tuple[Tensor, Tensor]:
        """Ids [C] of the teacher's and [C] of the student's, of the same words.

        leads: white space of the template that the next token begins with, on the student's and
        on the teacher's side. Tokens that end an answer correspond; so do special ones of one name.
        """
        if leads not in self._maps:
            ours = self._by_bytes(self.student, self.sizes[0], leads[0])
            theirs = self._by_bytes(self.teacher, self.sizes[1], leads[1])
            both = sorted((theirs[key], ours[key]) for key in theirs.keys() & ours.keys())
            found = torch.tensor(both, dtype=torch.int64).reshape(-1, 2)
            self._maps[leads] = (found[:, 0].contiguous(), found[:, 1].contiguous())
        return self._maps[leads]

    def same(self, ours: int, theirs: int, leads: tuple[bytes, bytes]) -> bool:
        """Whether a student's and a teacher's token are the same bytes, or both an end."""
        return same_bytes((self.student, self.teacher), (ours, theirs), leads)

    @staticmethod
    def _by_bytes(words: Words, size: int, lead: bytes) -> dict[tuple[str, bytes], int]:
        found: dict[tuple[str, bytes], int] = {}
        for number, text in enumerate(words.text[:size]):
            if number in words.ends:
                found["end", b""] = number
            elif number in words.special:
                found["special", text or b""] = number
            elif text and text.startswith(lead) and len(text) > len(lead):
                found.setdefault(("text", text[len(lead) :]), number)
        return found


def common_words(words: tuple[Words, Words], student: Any, teacher: Any) -> CommonWords:
    """Of two models. words: of their tokenizers, the student's first."""
    sizes = [
        min(len(known.text), output_layer(model).words)
        for known, model in zip(words, (student, teacher), strict=True)
    ]
    return CommonWords(words[0], words[1], (sizes[0], sizes[1]))


class AlignedTeacher:
    """A signal whose teacher reads the rows in tokens of its own."""

    def __init__(
        self,
        source: TeacherSignal,
        output: OutputLayer,
        data: RowSet,
        common: CommonWords,
        objective: Objective,
        *,
        dtype: torch.dtype,
        measuring: bool = False,
    ) -> None:
        """source: of `data.read_by_teacher`, and gives hidden states. output: the teacher's.

        dtype: of the matrix products. measuring: all spans are asked for, their likelihoods and
        the likeliest next tokens, whatever the objective compares.
        """
        assert data.teacher is not None
        self.source, self.data, self.spans = source, data, data.teacher.spans
        self.common, self.measuring = common, measuring
        self.settings, self.temperature = objective.alignment, objective.temperature
        self.answers_alone = objective.kd_tokens == "answer" and not measuring
        self.words, self.dtype = common.sizes[1], dtype
        self._last: tuple[MicroBatch, MicroBatch] | None = None
        self.output = output.cut(self.words, dtype)

    def read(self, batch: MicroBatch) -> MicroBatch:
        """The same families in the teacher's tokens; of the last batch they are remembered."""
        if self._last is None or self._last[0] is not batch:
            made = self.data.read_by_teacher.collate(batch.families, EVERY, PADDING)
            self._last = batch, made.to(batch.input_ids.device)
        return self._last[1]

    @torch.no_grad()
    def tokens(self, rows: Sequence[Row], batch: MicroBatch) -> AlignedTokens:
        """What it says of the spans whose tokens are all among the batch's predictions."""
        theirs = self.read(batch)
        teacher_rows = self.data.read_by_teacher.rows
        said = cast(HiddenStates, self.source.tokens(teacher_rows, theirs))
        mine = [_predictions(rows, batch), _predictions(teacher_rows, theirs)]
        chosen: list[tuple[Span, list[int], list[int]]] = []
        for place, number in enumerate(batch.rows):
            for span in self.spans[number]:
                if self.answers_alone and not span.answer:
                    continue
                own, other = (
                    [side[place].get(token) for token in range(*tokens)]
                    for side, tokens in zip(mine, (span.first, span.second), strict=True)
                )
                if None not in own:
                    chosen.append((span, cast(list[int], own), cast(list[int], other)))
        return self._said(batch, theirs, said.states, chosen)

    def _said(
        self,
        batch: MicroBatch,
        theirs: MicroBatch,
        states: Tensor,
        chosen: Sequence[tuple[Span, list[int], list[int]]],
    ) -> AlignedTokens:
        device, count = batch.input_ids.device, len(batch.targets)

        def numbers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        starts = numbers([own[0] for _, own, _ in chosen])
        begins = numbers([other[0] for _, _, other in chosen])
        counts = torch.zeros(count, device=device).index_add_(
            0, starts, torch.ones(len(starts), device=device)
        )
        log_p = best = None
        nexts: TopK | Ranked | None = None
        if self.settings.spans_used or self.measuring:
            asked = numbers([place for _, _, other in chosen for place in other])
            owners = numbers([n for n, (*_, other) in enumerate(chosen) for _ in other])
            each, top = self._log_p(states, theirs.targets, asked)
            log_p = torch.zeros(len(chosen), device=device).index_add_(0, owners, each)
            best = top[begins] if self.measuring else None
        first = _firsts(starts, count)  # one span of those that begin at a prediction
        at = starts[first]
        if self.settings.words_used:
            leads = [chosen[place][0].leads for place in first.tolist()]
            nexts = self._words(states[begins[first]], leads).spread(at, count)
        elif self.settings.method == "uld":
            spread = states.new_zeros(count, states.shape[1])
            nexts = Ranked(spread.index_copy(0, at, states[begins[first]]), self.output)
        return AlignedTokens(
            starts,
            numbers([place for _, own, _ in chosen for place in own]),
            numbers([n for n, (_, own, _) in enumerate(chosen) for _ in own]),
            torch.tensor([span.answer for span, *_ in chosen], dtype=torch.bool, device=device),
            counts,
            log_p,
            nexts,
            tuple(span.leads for span, *_ in chosen),
            best,
        )

    def _logits(self, states: Tensor) -> Tensor:
        return self.output.shape(self.output.products(states.to(self.dtype)).float())

    def _log_p(self, states: Tensor, targets: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the tokens that follow at `asked` [M], and the likeliest tokens [N],
        there alone."""
        wanted = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        wanted[asked] = True
        found, likeliest = torch.zeros_like(targets, dtype=torch.float32), -torch.ones_like(targets)
        for part in torch.split(wanted.nonzero()[:, 0], self._rows_at_once):
            logits = self._logits(states[part])
            picked = logits.gather(1, targets[part].unsqueeze(1))[:, 0]
            found[part], likeliest[part] = picked - logits.logsumexp(-1), logits.argmax(-1)
        return found[asked], likeliest

    def _words(self, states: Tensor, leads: Sequence[tuple[bytes, bytes]]) -> TopK:
        """The likeliest common words of each state, by the student's ids, and all others' mass.

        Where fewer words have the lead, fewer are told apart; the other rows' words stay.
        """
        count = self.settings.words
        device = states.device
        ids = torch.zeros(len(states), count, dtype=torch.int64, device=device)
        log_p = torch.full((len(states), count), -torch.inf, device=device)
        tail = torch.zeros(len(states), device=device)
        for one in {*leads}:
            own = torch.tensor([n for n, lead in enumerate(leads) if lead == one], device=device)
            theirs, ours = (side.to(device) for side in self.common.ids(one))
            if not len(theirs):
                continue  # all is in the tail
            to_student = torch.full((self.words,), -1, dtype=torch.int64, device=device)
            to_student[theirs] = ours
            for part in torch.split(own, self._rows_at_once):
                top = top_k(self._logits(states[part]), count, self.temperature, theirs)
                ids[part], log_p[part], tail[part] = to_student[top.ids], top.log_p, top.tail
        return TopK(ids, log_p, tail)

    @property
    def _rows_at_once(self) -> int:
        return max(1, LOGITS_BYTES // (4 * self.words))


def source_of(signal: TeacherSignal | AlignedTeacher) -> TeacherSignal:
    """The teacher's own signal, whether it is aligned or not."""
    return signal.source if isinstance(signal, AlignedTeacher) else signal


def _firsts(values: Tensor, count: int) -> Tensor:
    """The places [U] at which each value below `count` stands first, in the values' order."""
    order = torch.arange(len(values), device=values.device)
    place = torch.full((count,), len(values), dtype=torch.int64, device=values.device)
    place.scatter_reduce_(0, values, order, "amin")
    return place[place < len(values)]


def _predictions(rows: Sequence[Row], batch: MicroBatch) -> list[dict[int, int]]:
    """Of each of the batch's rows: which prediction each of its tokens is."""
    pairs = zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)
    places = {pair: place for place, pair in enumerate(pairs)}
    found = []
    for number, span in zip(batch.rows, batch.spans, strict=True):
        flat, ids = span.flat().tolist(), rows[number].ids
        own = ((token, places.get((flat[token - 1], ids[token]))) for token in range(1, len(ids)))
        found.append({token: place for token, place in own if place is not None})
    return found
