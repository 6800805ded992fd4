"""Rows of token ids, the order in which they are trained, and the micro-batches they become.

In: examples (and passages) and a tokenizer. Out: `Row`s, a deterministic plan of optimizer steps,
`MicroBatch`es of tensors. This is the one place where targets are shifted and tokens are made
active. Knows nothing of models or losses.

Rows are padded on the right and attention is causal, so no real token ever sees padding: batches
need no attention mask, and a row's result does not depend on its neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.distill.config import Tokens
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
class MicroBatch:
    """Rows that are computed at once. B rows padded to L tokens, of which N predictions count.

    The hidden state at flat position `positions[i]` predicts `targets[i]`, the token after it.
    """

    rows: tuple[int, ...]
    """Which rows of the data set."""
    input_ids: Tensor
    """[B, L] int64."""
    positions: Tensor
    """[N] int64, into the [B * L] flattened hidden states."""
    targets: Tensor
    """[N] int64."""
    kd_active: Tensor
    """[N] bool: the teacher is imitated here."""
    ce_active: Tensor
    """[N] bool: the cross-entropy counts here."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if self.input_ids.device == device:
            return self
        tensors = (
            tensor.to(device)
            for tensor in (
                self.input_ids,
                self.positions,
                self.targets,
                self.kd_active,
                self.ce_active,
            )
        )
        return MicroBatch(self.rows, *tensors)


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
    lengths: Sequence[int],
    *,
    step_tokens: int,
    micro_tokens: int,
    epochs: float,
    max_tokens: int | None,
    seed: int,
) -> list[list[list[int]]]:
    """The whole training as steps of micro-batches of row numbers; the same for the same input.

    Every epoch shuffles the rows, sorts them by length within windows of `WINDOW_STEPS` steps,
    cuts the windows into steps of about `step_tokens` real tokens, and shuffles the steps of a
    window. A micro-batch holds at most `micro_tokens` tokens, padding included.
    """
    if not lengths:
        raise TrainingError(
            "There are no training rows.", "Add documents, or let curation keep more rows."
        )
    budget = int(epochs * sum(lengths))
    if max_tokens is not None:
        budget = min(budget, max_tokens)
    steps: list[list[list[int]]] = []
    spent, epoch = 0, 0
    while spent < budget:
        for step in _epoch_steps(lengths, step_tokens, random.Random(f"{seed}/{epoch}")):
            if spent >= budget:
                break
            spent += sum(lengths[row] for row in step)
            steps.append(split_step(step, lengths, micro_tokens))
        epoch += 1
    return steps


def split_step(rows: Sequence[int], lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Rows in ascending length, cut so that rows x longest stays within `micro_tokens`."""
    micros: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (lengths[row], row)):
        if micros and (len(micros[-1]) + 1) * lengths[row] <= micro_tokens:
            micros[-1].append(row)
        else:
            micros.append([row])
    return micros


def _epoch_steps(lengths: Sequence[int], step_tokens: int, lots: random.Random) -> list[list[int]]:
    order = list(range(len(lengths)))
    lots.shuffle(order)
    steps: list[list[int]] = []
    window: list[int] = []
    for position, row in enumerate(order):
        window.append(row)
        full = sum(lengths[one] for one in window) >= WINDOW_STEPS * step_tokens
        if full or position == len(order) - 1:
            steps += _window_steps(window, lengths, step_tokens, lots)
            window = []
    return steps


def _window_steps(
    window: Sequence[int], lengths: Sequence[int], step_tokens: int, lots: random.Random
) -> list[list[int]]:
    """Cut a window into steps of similar lengths and nearly equal size, in a shuffled order."""
    total = sum(lengths[row] for row in window)
    count = max(1, round(total / step_tokens))
    steps: list[list[int]] = [[] for _ in range(count)]
    seen = 0
    for row in sorted(window, key=lambda row: (lengths[row], row)):
        middle = seen + lengths[row] / 2
        steps[min(count - 1, int(middle * count / total))].append(row)
        seen += lengths[row]
    steps = [step for step in steps if step]
    lots.shuffle(steps)
    return steps


def collate(
    rows: Sequence[Row], chosen: Sequence[int], active: ActiveTokens, padding: int
) -> MicroBatch:
    """The micro-batch of the `chosen` rows. `padding` is any id the model has an embedding for."""
    longest = max(len(rows[number].ids) for number in chosen)
    input_ids = torch.full((len(chosen), longest), padding, dtype=torch.int64)
    positions: list[Tensor] = []
    targets: list[Tensor] = []
    kd_active: list[Tensor] = []
    ce_active: list[Tensor] = []
    for place, number in enumerate(chosen):
        row = rows[number]
        ids = torch.tensor(row.ids, dtype=torch.int64)
        input_ids[place, : len(ids)] = ids
        # The shift, here and nowhere else: position t predicts token t + 1.
        predicted = torch.arange(1, len(ids))
        in_answer = predicted >= row.answer_start
        kd, ce = _active(in_answer, active.kd), _active(in_answer, active.ce)
        counts = kd | ce
        positions.append(place * longest + (predicted - 1)[counts])
        targets.append(ids[1:][counts])
        kd_active.append(kd[counts])
        ce_active.append(ce[counts])
    return MicroBatch(
        tuple(chosen),
        input_ids,
        torch.cat(positions),
        torch.cat(targets),
        torch.cat(kd_active),
        torch.cat(ce_active),
    )


def _active(in_answer: Tensor, tokens: Tokens | None) -> Tensor:
    if tokens is None:
        return torch.zeros_like(in_answer)
    return in_answer if tokens == "answer" else torch.ones_like(in_answer)
