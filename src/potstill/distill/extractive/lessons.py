"""Rows as windows with their targets, and the steps that they are trained in.

In: rows, what the teacher says of them, a tokenizer. Out: `Lesson`s, one a window; batches of
tensors; the plan of steps. Knows nothing of models, losses or optimizers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from potstill.models.spans.marks import Marks, places_of
from potstill.models.spans.model import collate, inputs_of
from potstill.models.spans.rows import SpanRow
from potstill.models.spans.windows import NOWHERE, Window, encode


@dataclass(frozen=True)
class Lesson:
    """One window. target: positions of the answer's first and last token, (0, 0) if it is not in
    here. teacher: [2, tokens] probabilities of start and end, if it was asked."""

    row: str
    window: Window
    target: tuple[int, int]
    teacher: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Windows as tensors. places: [windows, tokens] bool, where an answer may be. targets:
    [windows, 2] int64. teacher: [windows, 2, tokens] float32, all 0 where it was not asked."""

    inputs: Mapping[str, Tensor]
    places: Tensor
    targets: Tensor
    teacher: Tensor


def lessons_of(
    rows: Sequence[SpanRow],
    marks: Mapping[str, Marks],
    tokenizer: Any,
    *,
    window_tokens: int,
    window_overlap: int,
    temperature: float,
) -> list[Lesson]:
    """Every window of every row, in their order. Errors: those of `encode`."""
    lessons = []
    for row in rows:
        windows = encode(tokenizer, row.question, row.passage, window_tokens, window_overlap)
        tokens = None
        if row.start is not None and row.end is not None:
            tokens = windows.tokens_of(row.start, row.end)
        said = marks.get(row.id)
        taught: Sequence[Tensor | None] = [None] * len(windows.windows)
        if said is not None and (said.spans or said.none is not None):
            taught = places_of(said, windows, temperature)
        for window, teacher in zip(windows.windows, taught, strict=True):
            target = window.place(*tokens) if tokens else (NOWHERE, NOWHERE)
            lessons.append(Lesson(row.id, window, target, teacher))
    return lessons


def batch_of(model: Any, tokenizer: Any, lessons: Sequence[Lesson]) -> Batch:
    """Padded to the longest of them."""
    inputs = collate(inputs_of(model), tokenizer, [one.window for one in lessons])
    shape = inputs["input_ids"].shape
    places = torch.zeros(shape, dtype=torch.bool)
    teacher = torch.zeros(shape[0], 2, shape[1])
    for number, one in enumerate(lessons):
        places[number, NOWHERE] = True
        places[number, one.window.at : one.window.at + one.window.count] = True
        if one.teacher is not None:
            teacher[number, :, : one.teacher.shape[1]] = one.teacher
    return Batch(inputs, places, torch.tensor([one.target for one in lessons]), teacher)


def plan(count: int, epochs: float, batch: int, seed: int) -> list[list[int]]:
    """The windows of each optimizer step: each epoch in an order of its own."""
    total = max(1, round(epochs * count))
    drawn = islice(_orders(count, seed), total)
    steps = math.ceil(total / batch)
    return [list(islice(drawn, batch)) for _ in range(steps)]


def _orders(count: int, seed: int) -> Iterator[int]:
    lot = random.Random(seed)
    while True:
        order = list(range(count))
        lot.shuffle(order)
        yield from order


def micros(lessons: Sequence[Lesson], most: int) -> Iterator[list[Lesson]]:
    """Windows of like length together, at most so many tokens with padding."""
    some: list[Lesson] = []
    for one in sorted(lessons, key=lambda lesson: len(lesson.window.ids)):
        if some and len(one.window.ids) * (len(some) + 1) > most:
            yield some
            some = []
        some.append(one)
    if some:
        yield some
