"""Answers questions about passages of any length, with a model that marks spans.

In: the folder of a …ForQuestionAnswering model; questions and passages. Out: `SpanAnswer`s: the
words, how probable they are, where they stand, or that the passage does not answer. Knows nothing
of runs or documents.

    reader = potstill.SpanReader("runs/extractive-qa-local/export/safetensors")
    found = reader.answer("When is the boiler drained?", passage)
    found.answer, found.score, found.start, found.end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from potstill.errors import InputError
from potstill.models.span_decoding import Logits, Scored, SpanAnswer, best, scored
from potstill.models.span_model import logits_of, longest_window, open_span_model
from potstill.models.windows import Window, Windows, encode

Pair = tuple[str, str]
"""A question and its passage."""
AHEAD = 32
"""Pairs whose windows are read together."""


class SpanReader:
    """A model that marks answers, in memory, on the CPU, in float32."""

    def __init__(
        self,
        folder: str | Path,
        *,
        window_tokens: int = 384,
        window_overlap: int = 128,
        max_answer_tokens: int = 30,
        no_answer_threshold: float | None = 0.0,
    ) -> None:
        """no_answer_threshold: how many nats likelier than the best span no answer must be to be
        given; None: always give a span. A window is no longer than the model reads, and at most a
        third of it overlaps. Errors: ModelError for a folder that holds no such model.
        """
        self.model, self.tokenizer = open_span_model(Path(folder))
        self.window_tokens = longest_window(self.model, self.tokenizer, window_tokens)
        self.window_overlap = min(window_overlap, self.window_tokens // 3)
        self.max_answer_tokens = max_answer_tokens
        self.threshold = no_answer_threshold
        self.logits: Callable[[Sequence[Window]], Logits] = lambda windows: logits_of(
            self.model, self.tokenizer, windows
        )

    def answer(self, question: str, passage: str) -> SpanAnswer:
        """The answer to one question. Errors: InputError if either is empty."""
        return self.answers([(question, passage)])[0]

    def answers(
        self, pairs: Sequence[Pair], tell: Callable[[int], None] = lambda done: None
    ) -> list[SpanAnswer]:
        """The answers to several, in their order. tell: hears how many are done."""
        found: list[SpanAnswer] = []
        for start in range(0, len(pairs), AHEAD):
            some = pairs[start : start + AHEAD]
            for (_, passage), (windows, told) in zip(some, self.scored(some), strict=True):
                found.append(best(windows, passage, told, self.threshold))
            tell(len(found))
        return found

    def scored(self, pairs: Sequence[Pair]) -> list[tuple[Windows, Scored]]:
        """Each pair's windows, and its distribution over spans and no answer."""
        encoded = [self.windows(question, passage) for question, passage in pairs]
        logits = self.logits([window for one in encoded for window in one.windows])
        ends = accumulate((len(one.windows) for one in encoded), initial=0)
        return [
            (one, scored(one, logits[start:end], self.max_answer_tokens))
            for one, (start, end) in zip(encoded, pairwise(ends), strict=True)
        ]

    def windows(self, question: str, passage: str) -> Windows:
        """A pair as this model reads it. Errors: InputError."""
        for name, text in (("question", question), ("passage", passage)):
            if not text.strip():
                raise InputError(
                    f"The {name} is empty.", "A reader needs a question and its passage."
                )
        return encode(
            self.tokenizer, question, passage, self.window_tokens, self.window_overlap
        )
