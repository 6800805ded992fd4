"""Rows of token ids, and the micro-batches they become.

In: examples (and passages) and a tokenizer. Out: `Row`s and `MicroBatch`es of tensors; which of
them make a step is planned in `packing.py`. This is the one place where targets are shifted and
tokens are made active. Knows nothing of models or losses.

A micro-batch has one of two layouts, with the same loss and gradients:

    packed    one sequence without padding; attention stays within its segments (`attention.py`)
    buckets   sequences of like length, padded on the right: for models that know no segments

Attention is causal, so no real token ever sees padding. Rows that share a beginning may stand in
one sequence (`families.py`); only then there is a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from potstill.distill.attention import Segment
from potstill.distill.families import (
    Family,
    RowSpan,
    positions_and_mask,
    sequence_tokens,
    shared_tokens,
    spans_of,
)
from potstill.distill.objective import ActiveTokens, Tokens
from potstill.distill.teacher_rows import TeacherRows
from potstill.models.chat import EncodedExample, encode_example
from potstill.records import Chunk, Example

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """One sequence. The answer is `ids[answer_start:]`."""

    id: str
    ids: tuple[int, ...]
    answer_start: int
    truncated: bool = False
    bare: bool = False
    """A passage: text alone, without an answer."""
    gold: bool = True
    """False: the answer is the student's own (`rollouts.py`), which no cross-entropy learns."""
    document: str = ""
    """Id of the document that it comes from, if it comes from one."""

    @property
    def predictions(self) -> int:
        """Tokens of the row that are predicted: all but the first."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class RowSet:
    """Rows, which of them are computed together, and the layout of their batches."""

    rows: Sequence[Row]
    families: Sequence[Family]
    packed: bool = False
    teacher: TeacherRows | None = None
    """If the teacher has another tokenizer."""

    @classmethod
    def apart(cls, rows: Sequence[Row], packed: bool = False) -> RowSet:
        """Every row by itself."""
        return cls(rows, [(number,) for number in range(len(rows))], packed)

    @cached_property
    def read_by_teacher(self) -> RowSet:
        """What the teacher reads: these rows, or the same in its own tokens."""
        if self.teacher is None:
            return self
        return RowSet(self.teacher.rows, self.families, self.packed)

    def active_counts(self, numbers: Iterable[int], active: ActiveTokens) -> dict[str, float]:
        """What each term counts in these rows: predictions; of aligned rows `kd` counts spans."""
        chosen = list(numbers)
        counts = active_counts((self.rows[number] for number in chosen), active)
        if self.teacher is not None and active.kd:
            spans = (span for number in chosen for span in self.teacher.spans[number])
            counts["kd"] = float(sum(active.kd == "all" or span.answer for span in spans))
        return counts

    @cached_property
    def sizes(self) -> dict[Family, int]:
        """How many tokens each family computes."""
        found = {}
        for family in self.families:
            ids = [self.rows[number].ids for number in family]
            found[family] = sequence_tokens([len(one) for one in ids], shared_tokens(ids))
        return found

    @cached_property
    def tokens(self) -> dict[Family, int]:
        """How many row tokens each family has: what its rows share counts for each of them."""
        return {
            family: sum(len(self.rows[number].ids) for number in family) for family in self.families
        }

    def shape(self, micro: Sequence[Family]) -> tuple[int, int]:
        """(B, L) of a micro-batch."""
        return _shape([self.sizes[family] for family in micro], self.packed)

    def collate(self, micro: Sequence[Family], active: ActiveTokens, padding: int) -> MicroBatch:
        """The micro-batch of some families. `padding` is any id the model has an embedding for."""
        return collate(self.rows, micro, active, padding, packed=self.packed)


@dataclass(frozen=True)
class MicroBatch:
    """Families that are computed at once: B sequences of L tokens, N predictions that count.

    B is 1 if they are packed. The hidden state at flat position `positions[i]` predicts
    `targets[i]`, the token after it.
    """

    rows: tuple[int, ...]
    """Which rows of the data set."""
    spans: tuple[RowSpan, ...]
    """Where each of them stands in the flattened input."""
    families: tuple[Family, ...]
    starts: tuple[int, ...]
    """Flat position at which each family's sequence begins."""
    input_ids: Tensor
    """[B, L] int64."""
    positions: Tensor
    """[N] int64, into the [B * L] flattened hidden states."""
    targets: Tensor
    """[N] int64."""
    kd_counts: Tensor
    """[N] fp32: for how many rows the teacher is imitated here; above 1 in a shared beginning."""
    ce_counts: Tensor
    """[N] fp32: for how many rows the cross-entropy counts here."""
    hidden_counts: Tensor
    """[N] fp32: for how many rows the state here is compared with the teacher's."""
    attention_counts: Tensor
    """[N] fp32: for how many rows the attention from here is compared with the teacher's."""
    position_ids: Tensor | None = None
    """[B, L] int64, if packed or rows share a beginning; else a token's position is its column."""
    attention_mask: Tensor | None = None
    """[B, 1, L, L] bool: which token (third axis) sees which; else every one before it."""
    segments: tuple[Segment, ...] | None = None
    """If packed: the sequences that attention stays within."""

    def inputs(self) -> dict[str, Any]:
        """What the decoder is called with."""
        arguments: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.position_ids is not None:
            arguments["position_ids"] = self.position_ids
            arguments["attention_mask"] = self.attention_mask
        if self.segments is not None:
            arguments["segments"] = self.segments
            # transformers takes a mask of four axes as it is, and would make one for all tokens.
            arguments["attention_mask"] = self.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
        return arguments

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if self.input_ids.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


Micro = list[Family]
"""What becomes a micro-batch."""


def evenly(rows: Sequence[Item], count: int) -> list[Item]:
    """So many of the rows, in even distances."""
    return [rows[number * len(rows) // count] for number in range(count)]


def encode_rows(examples: Iterable[Example], tokenizer: Any, max_tokens: int) -> list[Row]:
    """Encode examples as the student will see them; a longer row is cut and marked."""
    return [
        row_of(example, encode_example(tokenizer, example.turns, max_tokens))
        for example in examples
    ]


def row_of(example: Example, encoded: EncodedExample) -> Row:
    """The row of an example, as one tokenizer reads it."""
    return Row(
        example.id,
        tuple(encoded.ids),
        encoded.answer_start,
        encoded.truncated,
        document=example.provenance.document,
    )


def encode_passages(chunks: Iterable[Chunk], tokenizer: Any, max_tokens: int) -> list[Row]:
    """The bare text of chunks as rows without an answer, ended by the end token if there is one."""
    rows = []
    for chunk in chunks:
        ids = [int(token) for token in tokenizer(chunk.text).input_ids]
        if tokenizer.eos_token_id is not None:
            ids.append(int(tokenizer.eos_token_id))
        if len(ids) > 1:
            kept = tuple(ids[:max_tokens])
            cut = len(ids) > max_tokens
            rows.append(Row(chunk.id, kept, len(kept), cut, bare=True, document=chunk.document))
    return rows


def collate(
    rows: Sequence[Row],
    micro: Sequence[Family],
    active: ActiveTokens,
    padding: int,
    *,
    packed: bool = False,
) -> MicroBatch:
    """The micro-batch of some families. `padding` is any id the model has an embedding for."""
    members = [[rows[number] for number in family] for family in micro]
    shared = [shared_tokens([row.ids for row in family]) for family in members]
    lengths = [[len(row.ids) for row in family] for family in members]
    sizes = list(map(sequence_tokens, lengths, shared))
    shape = _shape(sizes, packed)
    places = [0, *accumulate(sizes)][:-1]
    starts = places if packed else [line * shape[1] for line in range(len(micro))]
    input_ids = torch.full(shape, padding, dtype=torch.int64)
    spans: list[RowSpan] = []
    predictions: list[tuple[Tensor, Tensor, Tensor]] = []
    for line, family in enumerate(members):
        found = spans_of(lengths[line], shared[line], starts[line])
        for row, span in zip(family, found, strict=True):
            input_ids.view(-1)[span.flat()] = torch.tensor(row.ids, dtype=torch.int64)
        predictions += _predictions(family, found, active)
        spans += found
    positions, targets, counts = (torch.cat(parts, -1) for parts in zip(*predictions, strict=True))
    asked = counts.any(0)
    return MicroBatch(
        tuple(number for family in micro for number in family),
        tuple(spans),
        tuple(micro),
        tuple(starts),
        input_ids,
        positions[asked],
        targets[asked],
        *counts[:, asked],
        **_sight(members, spans, sizes, shape[1], packed),
    )


def _shape(sizes: Sequence[int], packed: bool) -> tuple[int, int]:
    """(B, L) of sequences of these sizes."""
    return (1, sum(sizes)) if packed else (len(sizes), max(sizes))


def _sight(
    members: Sequence[Sequence[Row]],
    spans: Sequence[RowSpan],
    sizes: Sequence[int],
    width: int,
    packed: bool,
) -> dict[str, Any]:
    """Positions, and the mask or the segments, as far as the layout needs them."""
    branched = any(len(family) > 1 for family in members)
    if not packed and not branched:
        return {}
    positions, masks, segments, first = [], [], [], 0
    for family, size in zip(members, sizes, strict=True):
        own = spans[first : first + len(family)]
        first += len(family)
        if packed and len(family) == 1:
            positions.append(torch.arange(size))
            segments.append(Segment(own[0].shared_start, size))
            continue
        at, sees = positions_and_mask(own, size if packed else width)
        positions.append(at)
        masks.append(sees)
        segments.append(Segment(own[0].shared_start, size, at, sees))
    if packed:
        return {"position_ids": torch.cat(positions).unsqueeze(0), "segments": tuple(segments)}
    return {
        "position_ids": torch.stack(positions),
        "attention_mask": torch.stack(masks).unsqueeze(1),
    }


def _predictions(
    family: Sequence[Row], spans: Sequence[RowSpan], active: ActiveTokens
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Positions [n], targets [n] and each term's counts [terms, n]: of the shared beginning once,
    and of each row's own end."""
    beginning = max(0, spans[0].shared - 1)  # predictions whose target is shared too
    shared = torch.zeros(len(vars(active)), beginning)
    first = torch.tensor(family[0].ids[1 : beginning + 1], dtype=torch.int64)
    found = [(spans[0].flat()[:beginning], first, shared)]
    for row, span in zip(family, spans, strict=True):
        flat, ids = span.flat(), torch.tensor(row.ids, dtype=torch.int64)
        # The shift, here and nowhere else: position t predicts token t + 1.
        in_answer = torch.arange(1, len(ids)) >= row.answer_start
        terms = vars(counted(row, active)).values()
        counts = torch.stack([_active(in_answer, tokens) for tokens in terms])
        shared += counts[:, :beginning]
        own = slice(beginning, None)
        found.append((flat[:-1][own], ids[1:][own], counts[:, own]))
    return found


def counted(row: Row, active: ActiveTokens) -> ActiveTokens:
    """What the terms count of this row: the cross-entropy nothing where the answer is not gold."""
    return active if row.gold else replace(active, ce=None)


def active_counts(rows: Iterable[Row], active: ActiveTokens) -> dict[str, float]:
    """How many predictions of these rows each term counts, without building a batch."""
    sums = dict.fromkeys(vars(active), 0.0)
    for row in rows:
        in_answer = len(row.ids) - max(1, row.answer_start)
        for term, tokens in vars(counted(row, active)).items():
            sums[term] += {"all": row.predictions, "answer": in_answer, None: 0}[tokens]
    return sums


def _active(in_answer: Tensor, tokens: Tokens | None) -> Tensor:
    if tokens is None:
        return torch.zeros(len(in_answer))
    return in_answer.float() if tokens == "answer" else torch.ones(len(in_answer))
