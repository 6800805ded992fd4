"""Answers questions about passages of any length, with a model that marks spans.

In: the folder of a …ForQuestionAnswering model; questions and passages. Out: `SpanAnswer`s: the
words, how probable they are, where they stand, or that the passage does not answer. Knows nothing
of runs or documents.

    reader = potstill.SpanReader("runs/extractive-qa-local/export/safetensors")
    found = reader.answer("When is the boiler drained?", passage)
    found.answer, found.score, found.start, found.end
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import EllipsisType

from torch import Tensor

from potstill.core.files import read_json, write_json
from potstill.errors import InputError, StoreError
from potstill.models.spans.backends import Backend, OnnxBackend, TorchBackend
from potstill.models.spans.decoding import Scored, SpanAnswer, best, margin, scored
from potstill.models.spans.model import AT_ONCE, longest_window
from potstill.models.spans.windows import Windows, encode

Pair = tuple[str, str]
"""A question and its passage."""
SETTINGS = "reader.json"
AHEAD = 32
"""Pairs whose windows are read together."""


@dataclass(frozen=True)
class ReaderSettings:
    """How a passage is read. A model's folder may hold its own, in reader.json.

    no_answer_threshold: how many nats likelier than the best span no answer must be to be given;
    None: always give a span.
    """

    window_tokens: int = 384
    window_overlap: int = 128
    max_answer_tokens: int = 30
    no_answer_threshold: float | None = 0.0

    @classmethod
    def of(cls, folder: Path) -> ReaderSettings:
        """Those of a folder, or the defaults. Errors: StoreError for a damaged file."""
        file = folder / SETTINGS
        if not file.exists():
            return cls()
        try:
            return cls(**read_json(file))
        except TypeError as error:
            raise StoreError(f"{file} holds no settings of a reader: {error}.") from error

    def save(self, folder: Path) -> None:
        """Write them beside a model."""
        write_json(folder / SETTINGS, asdict(self))


@dataclass(frozen=True)
class FoundAnswer:
    """The best answer of several passages. passage: the number of the one that it stands in; None:
    no passage answers. tokens: that were read, all windows together."""

    answer: SpanAnswer
    passage: int | None
    tokens: int


class SpanReader:
    """A model that marks answers, in memory, on the CPU. May be used by several threads."""

    def __init__(
        self,
        folder: str | Path,
        settings: ReaderSettings | None = None,
        *,
        onnx: str | Path | None = None,
        threads: int | None = None,
    ) -> None:
        """settings: None: the folder's own. onnx: an exported file of the model, which ONNX Runtime
        then reads instead of PyTorch, with so many `threads` a call. A window is no longer than the
        model reads, and at most a third of it overlaps. Errors: ModelError for a folder that holds
        no such model.
        """
        place = Path(folder)
        self.backend: Backend = (
            TorchBackend(place) if onnx is None else OnnxBackend(place, Path(onnx), threads)
        )
        self._tokenizing = threading.Lock()  # a fast tokenizer is told how to cut at each call
        self.tokenizer = self.backend.tokenizer
        self.settings = settings or ReaderSettings.of(Path(folder))
        self.window_tokens = longest_window(
            self.backend.config, self.tokenizer, self.settings.window_tokens
        )
        self.window_overlap = min(self.settings.window_overlap, self.window_tokens // 3)

    def answer(self, question: str, passage: str) -> SpanAnswer:
        """The answer to one question. Errors: InputError if either is empty."""
        return self.answers([(question, passage)])[0]

    def answer_from(
        self,
        question: str,
        passages: Sequence[str],
        *,
        threshold: float | EllipsisType | None = ...,
        before: Callable[[], None] = lambda: None,
    ) -> FoundAnswer:
        """The answer to a question that one of several passages may hold.

        Probabilities of two passages are not compared: each adds up to 1 over its own spans. What
        all passages have in common is the event that they do not answer, so the span wins that is
        the most nats likelier than no answer in its own passage (as Devlin et al. 2019, section
        4.3, take the null score). There is no answer only if every passage says so, and that is as
        probable as in the passage that rates it lowest. Ties: the earlier passage.

        threshold: as the settings' no_answer_threshold; ...: the settings' own. before: called
        before each few windows; what it raises ends the reading. Errors: InputError if the question
        or a passage is empty, or there is none.
        """
        if not passages:
            raise InputError("There is no passage.", "A reader needs a question and its passage.")
        if isinstance(threshold, EllipsisType):
            threshold = self.settings.no_answer_threshold
        tokens, told = 0, list[tuple[Windows, Scored]]()
        for passage in passages:
            windows = self.windows(question, passage)
            logits: list[tuple[Tensor, Tensor]] = []
            for start in range(0, len(windows.windows), AT_ONCE):
                before()
                logits += self.backend.logits(windows.windows[start : start + AT_ONCE])
            told.append((windows, scored(windows, logits, self.settings.max_answer_tokens)))
            tokens += sum(len(one.ids) for one in windows.windows)
        number = max(range(len(told)), key=lambda n: (margin(told[n][1]), -n))
        found = best(told[number][0], passages[number], told[number][1], threshold)
        none = min(math.exp(one.none) for _, one in told)
        found = replace(found, no_answer=none, score=found.score if found.answer else none)
        return FoundAnswer(found, number if found.answer else None, tokens)

    def answers(
        self, pairs: Sequence[Pair], tell: Callable[[int], None] | None = None
    ) -> list[SpanAnswer]:
        """The answers to several, in their order. tell: hears how many are done."""
        found: list[SpanAnswer] = []
        for start in range(0, len(pairs), AHEAD):
            some = pairs[start : start + AHEAD]
            for (_, passage), (windows, told) in zip(some, self.scored(some), strict=True):
                found.append(best(windows, passage, told, self.settings.no_answer_threshold))
            if tell is not None:
                tell(len(found))
        return found

    def scored(self, pairs: Sequence[Pair]) -> list[tuple[Windows, Scored]]:
        """Each pair's windows, and its distribution over spans and no answer."""
        encoded = [self.windows(question, passage) for question, passage in pairs]
        logits = self.backend.logits([window for one in encoded for window in one.windows])
        ends = accumulate((len(one.windows) for one in encoded), initial=0)
        return [
            (one, scored(one, logits[start:end], self.settings.max_answer_tokens))
            for one, (start, end) in zip(encoded, pairwise(ends), strict=True)
        ]

    def windows(self, question: str, passage: str) -> Windows:
        """A pair as this model reads it. Errors: InputError."""
        for name, text in (("question", question), ("passage", passage)):
            if not text.strip():
                raise InputError(
                    f"The {name} is empty.", "A reader needs a question and its passage."
                )
        with self._tokenizing:
            return encode(
                self.tokenizer, question, passage, self.window_tokens, self.window_overlap
            )
