"""Rows of token ids, the order in which they are trained, and the micro-batches they become.

In: examples (and passages) and a tokenizer. Out: `Row`s, a deterministic plan of optimizer steps,
`MicroBatch`es of tensors. This is the one place where targets are shifted and tokens are made
active. Knows nothing of models or losses.

Rows are padded on the right and attention is causal, so no real token ever sees padding: batches
need no attention mask, and a row's result does not depend on its neighbours. Rows that share a
beginning may stand in one sequence (`families.py`); only then there is a mask.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from potstill.distill.config import Tokens
from potstill.distill.families import (
    Family,
    RowSpan,
    positions_and_mask,
    sequence_tokens,
    shared_tokens,
    spans_of,
)
from potstill.errors import TrainingError
from potstill.models.chat import encode_example
from potstill.records import Chunk, Example

WINDOW_STEPS = 16
"""Optimizer steps among which rows are sorted by length: little padding, and still a shuffle."""


@dataclass(frozen=True)
class Row:
    """One sequence. The answer is `ids[answer_start:]`."""

    id: str
    ids: tuple[int, ...]
    answer_start: int
    truncated: bool = False
    bare: bool = False
    """A passage: text alone, without an answer."""

    @property
    def predictions(self) -> int:
        """Tokens of the row that are predicted: all but the first."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class RowSet:
    """Rows, and which of them are computed together."""

    rows: Sequence[Row]
    families: Sequence[Family]

    @classmethod
    def apart(cls, rows: Sequence[Row]) -> RowSet:
        """Every row by itself."""
        return cls(rows, [(number,) for number in range(len(rows))])

    @cached_property
    def sizes(self) -> dict[Family, int]:
        """How many tokens each family computes."""
        found = {}
        for family in self.families:
            ids = [self.rows[number].ids for number in family]
            found[family] = sequence_tokens([len(one) for one in ids], shared_tokens(ids))
        return found


@dataclass(frozen=True)
class MicroBatch:
    """Families that are computed at once: B sequences padded to L tokens, N predictions that count.

    The hidden state at flat position `positions[i]` predicts `targets[i]`, the token after it.
    """

    rows: tuple[int, ...]
    """Which rows of the data set."""
    spans: tuple[RowSpan, ...]
    """Where each of them stands in the flattened input."""
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
    position_ids: Tensor | None = None
    """[B, L] int64, where rows share a beginning; else a token's position is its column."""
    attention_mask: Tensor | None = None
    """[B, 1, L, L] bool: which token (third axis) sees which; else every one before it."""

    def inputs(self) -> dict[str, Any]:
        """What the decoder is called with."""
        arguments: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.attention_mask is not None:
            arguments["position_ids"] = self.position_ids
            arguments["attention_mask"] = self.attention_mask
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


@dataclass(frozen=True)
class ActiveTokens:
    """Which predictions each term counts; None: the term is not used at all."""

    kd: Tokens | None
    ce: Tokens | None


def encode_rows(examples: Iterable[Example], tokenizer: Any, max_tokens: int) -> list[Row]:
    """Encode examples as the student will see them; a longer row is cut and marked."""
    rows = []
    for example in examples:
        encoded = encode_example(tokenizer, example.turns, max_tokens)
        rows.append(Row(example.id, tuple(encoded.ids), encoded.answer_start, encoded.truncated))
    return rows


def encode_passages(chunks: Iterable[Chunk], tokenizer: Any, max_tokens: int) -> list[Row]:
    """The bare text of chunks as rows without an answer, ended by the end token if there is one."""
    rows = []
    for chunk in chunks:
        ids = [int(token) for token in tokenizer(chunk.text).input_ids]
        if tokenizer.eos_token_id is not None:
            ids.append(int(tokenizer.eos_token_id))
        if len(ids) > 1:
            kept = tuple(ids[:max_tokens])
            rows.append(Row(chunk.id, kept, len(kept), len(ids) > max_tokens, bare=True))
    return rows


def plan_steps(
    data: RowSet,
    *,
    step_tokens: int,
    micro_tokens: int,
    epochs: float,
    max_tokens: int | None,
    seed: int,
) -> list[list[Micro]]:
    """The whole training as steps of micro-batches of families; the same for the same input.

    Every epoch shuffles the families, sorts them by length within windows of `WINDOW_STEPS`
    steps, cuts the windows into steps of about `step_tokens` tokens, and shuffles the steps of a
    window. A step's tokens are those of its rows, each counted in full though a beginning that
    rows share is computed once. A micro-batch computes at most `micro_tokens`, padding included.
    """
    if not data.rows:
        raise TrainingError(
            "There are no training rows.", "Add documents, or let curation keep more rows."
        )
    tokens = {
        family: sum(len(data.rows[number].ids) for number in family) for family in data.families
    }
    budget = int(epochs * sum(tokens.values()))
    if max_tokens is not None:
        budget = min(budget, max_tokens)
    steps: list[list[Micro]] = []
    spent, epoch = 0, 0
    while spent < budget:
        rng = random.Random(f"{seed}/{epoch}")
        for step in _epoch_steps(tokens, data.sizes, step_tokens, rng):
            if spent >= budget:
                break
            spent += sum(tokens[family] for family in step)
            steps.append(split_step(step, data.sizes, micro_tokens))
        epoch += 1
    return steps


def split_step(
    families: Sequence[Family], sizes: Mapping[Family, int], micro_tokens: int
) -> list[Micro]:
    """Families in ascending length, cut so that families x longest stays within `micro_tokens`."""
    micros: list[Micro] = []
    for family in sorted(families, key=lambda family: (sizes[family], family)):
        if micros and (len(micros[-1]) + 1) * sizes[family] <= micro_tokens:
            micros[-1].append(family)
        else:
            micros.append([family])
    return micros


def _epoch_steps(
    tokens: Mapping[Family, int],
    sizes: Mapping[Family, int],
    step_tokens: int,
    rng: random.Random,
) -> list[list[Family]]:
    order = list(tokens)
    rng.shuffle(order)
    steps: list[list[Family]] = []
    window: list[Family] = []
    held = 0
    for place, family in enumerate(order):
        window.append(family)
        held += tokens[family]
        if held >= WINDOW_STEPS * step_tokens or place == len(order) - 1:
            window.sort(key=lambda family: (sizes[family], family))
            steps += _window_steps(window, tokens, step_tokens, rng)
            window, held = [], 0
    return steps


def _window_steps(
    window: Sequence[Family],
    tokens: Mapping[Family, int],
    step_tokens: int,
    rng: random.Random,
) -> list[list[Family]]:
    """Cut a sorted window into steps of nearly equal size, in a shuffled order."""
    total = sum(tokens[family] for family in window)
    count = max(1, round(total / step_tokens))
    steps: list[list[Family]] = [[] for _ in range(count)]
    seen = 0
    for family in window:
        middle = seen + tokens[family] / 2
        steps[min(count - 1, int(middle * count / total))].append(family)
        seen += tokens[family]
    steps = [step for step in steps if step]
    rng.shuffle(steps)
    return steps


def collate(
    rows: Sequence[Row], micro: Sequence[Family], active: ActiveTokens, padding: int
) -> MicroBatch:
    """The micro-batch of some families. `padding` is any id the model has an embedding for."""
    members = [[rows[number] for number in family] for family in micro]
    shared = [shared_tokens([row.ids for row in family]) for family in members]
    lengths = [[len(row.ids) for row in family] for family in members]
    longest = max(map(sequence_tokens, lengths, shared))
    input_ids = torch.full((len(micro), longest), padding, dtype=torch.int64)
    spans: list[RowSpan] = []
    predictions: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    masks: list[tuple[Tensor, Tensor]] = []
    branched = any(len(family) > 1 for family in micro)
    for line, family in enumerate(members):
        found = spans_of(lengths[line], shared[line], line * longest)
        for row, span in zip(family, found, strict=True):
            input_ids.view(-1)[span.flat()] = torch.tensor(row.ids, dtype=torch.int64)
        predictions += _predictions(family, found, active)
        spans += found
        if branched:
            masks.append(positions_and_mask(found, longest))
    positions, targets, kd_counts, ce_counts = (
        torch.cat(parts) for parts in zip(*predictions, strict=True)
    )
    counts = (kd_counts + ce_counts) > 0
    return MicroBatch(
        tuple(number for family in micro for number in family),
        tuple(spans),
        input_ids,
        positions[counts],
        targets[counts],
        kd_counts[counts],
        ce_counts[counts],
        torch.stack([position_ids for position_ids, _ in masks]) if branched else None,
        torch.stack([mask for _, mask in masks]).unsqueeze(1) if branched else None,
    )


def _predictions(
    family: Sequence[Row], spans: Sequence[RowSpan], active: ActiveTokens
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Positions, targets and counts: of the shared beginning once, of each row's own end."""
    beginning = max(0, spans[0].shared - 1)  # predictions whose target is shared too
    shared_kd, shared_ce = torch.zeros(beginning), torch.zeros(beginning)
    first = torch.tensor(family[0].ids[1 : beginning + 1], dtype=torch.int64)
    found = [(spans[0].flat()[:beginning], first, shared_kd, shared_ce)]
    for row, span in zip(family, spans, strict=True):
        flat, ids = span.flat(), torch.tensor(row.ids, dtype=torch.int64)
        # The shift, here and nowhere else: position t predicts token t + 1.
        in_answer = torch.arange(1, len(ids)) >= row.answer_start
        kd, ce = _active(in_answer, active.kd), _active(in_answer, active.ce)
        shared_kd += kd[:beginning]
        shared_ce += ce[:beginning]
        own = slice(beginning, None)
        found.append((flat[:-1][own], ids[1:][own], kd[own], ce[own]))
    return found


def _active(in_answer: Tensor, tokens: Tokens | None) -> Tensor:
    if tokens is None:
        return torch.zeros(len(in_answer))
    return in_answer.float() if tokens == "answer" else torch.ones(len(in_answer))
