"""Answers of spans and of a language model to the same rows, and how fast they come.

In: models' folders, rows. Out: one `Answered` a row, `AnswerSpeed`. Knows nothing of stages.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from potstill.core.machine import own_peak_bytes
from potstill.evaluate.answers import ReadPrompt, write_answers
from potstill.evaluate.forward import head_of
from potstill.evaluate.speed import release_memory, reset_peak_memory
from potstill.models.chat import encode_example
from potstill.models.prefix_reader import Plan, PrefixReader
from potstill.models.sampling import end_tokens
from potstill.models.spans.reader import SpanReader
from potstill.models.spans.rows import SpanRow
from potstill.records import Turn

NO_LIMIT = 1 << 30
Ask = Callable[[Sequence[SpanRow]], list["Answered"]]


@dataclass(frozen=True)
class Answered:
    """What was said to a row. start, end: the span, if one was marked. finished: not cut short."""

    text: str
    start: int | None = None
    end: int | None = None
    score: float | None = None
    finished: bool = True


@dataclass(frozen=True)
class AnswerSpeed:
    """Of one question after the other: half and 95% of the answers came within that. Memory is the
    most that the process held while it held only this model."""

    questions_per_second: float
    answer_s: float
    answer_p95_s: float
    load_s: float
    peak_memory_bytes: int


def by_spans(reader: SpanReader) -> Ask:
    """How a model that marks answers is asked."""

    def ask(rows: Sequence[SpanRow]) -> list[Answered]:
        found = reader.answers([(row.question, row.passage) for row in rows])
        return [
            Answered(one.answer, one.start, one.end, one.score)
            if one.answer
            else Answered("", score=one.score)
            for one in found
        ]

    return ask


class Writer:
    """A language model that answers greedily, each row by its own prompt."""

    def __init__(self, model: Any, tokenizer: Any, answer_tokens: int, batch: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.answer_tokens, self.batch = answer_tokens, batch
        self.head = head_of(model, max(tokenizer.get_vocab().values()) + 1)
        self.ends = end_tokens(model, tokenizer)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[SpanRow]) -> list[Answered]:
        """The answers in the rows' order; shared beginnings are read once."""
        prompts = [self._prompt(row) for row in rows]
        reader = PrefixReader(self.model)
        found: dict[int, Answered] = {}
        waiting: dict[int, ReadPrompt] = {}
        for place, shared in Plan.of(prompts):
            hidden = reader.read(prompts[place], shared)
            first = int(self.head.logits(hidden[-1:])[0].argmax())
            length = len(prompts[place])
            waiting[place] = ReadPrompt(reader.prefix(length), length, first)
            if len(waiting) == self.batch:
                found |= self._written(waiting)
                waiting = {}
        found |= self._written(waiting)
        return [found[place] for place in range(len(rows))]

    def _written(self, waiting: Mapping[int, ReadPrompt]) -> dict[int, Answered]:
        if not waiting:
            return {}
        answers = write_answers(
            self.model, list(waiting.values()), self.ends, self.answer_tokens, self.head.words
        )
        texts = [self.tokenizer.decode(one.ids, skip_special_tokens=True) for one in answers]
        return {
            place: Answered(text.strip(), finished=one.finished)
            for place, one, text in zip(waiting, answers, texts, strict=True)
        }

    def _prompt(self, row: SpanRow) -> list[int]:
        turns = (*row.example.turns[:-1], Turn(role="assistant", content="x"))
        return encode_example(self.tokenizer, turns, NO_LIMIT).prompt


def measure_speed(
    loaders: Mapping[str, Callable[[], Ask]],
    rows: Sequence[SpanRow],
    rounds: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, AnswerSpeed]:
    """Time every model `rounds` times in turn, one question at a time; the medians count."""
    loads: dict[str, list[float]] = {name: [] for name in loaders}
    times: dict[str, list[list[float]]] = {name: [] for name in loaders}
    memory = dict.fromkeys(loaders, 0)
    for _ in range(rounds):
        for name, load in loaders.items():
            release_memory()
            reset_peak_memory()
            began = time.perf_counter()
            ask = load()
            loads[name].append(time.perf_counter() - began)
            ask(rows[:1])  # warm-up: first use allocates and picks kernels
            times[name].append([_seconds(ask, row) for row in rows])
            memory[name] = max(memory[name], own_peak_bytes())
            del ask
            tell(sum(len(found) for found in times.values()))
    release_memory()
    return {name: _speed(loads[name], times[name], memory[name]) for name in loaders}


def _seconds(ask: Ask, row: SpanRow) -> float:
    began = time.perf_counter()
    ask([row])
    return time.perf_counter() - began


def _speed(loads: list[float], rounds: list[list[float]], memory: int) -> AnswerSpeed:
    every = sorted(one for some in rounds for one in some)
    return AnswerSpeed(
        questions_per_second=len(rounds[0]) / statistics.median(map(sum, rounds)),
        answer_s=statistics.median(every),
        answer_p95_s=every[math.ceil(0.95 * len(every)) - 1],
        load_s=statistics.median(loads),
        peak_memory_bytes=memory,
    )
