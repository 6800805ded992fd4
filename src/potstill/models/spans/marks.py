"""What a teacher says of one row: how probable it takes spans of the passage, and no answer.

In: characters with log-probabilities. Out: `Marks`, and what they say of a window's places at a
temperature. Knows no teacher; `signals.py` asks them.

A span counts at the student's token that holds its first character, and at the one that holds its
last, so the two sides need no common tokenizer. What a window does not hold whole is no answer in
it: its probability goes to position 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from potstill.models.spans.windows import NOWHERE, Window, Windows
from potstill.records import Record


class Marks(Record):
    """Of one row: spans as [start, end) characters of the passage, and their log-probabilities."""

    id: str
    spans: tuple[tuple[int, int], ...] = ()
    log_p: tuple[float, ...] = ()
    none: float | None = Field(None, description="Of no answer; None: the teacher knows no such.")

    @property
    def coverage(self) -> float:
        """The probability of all that is listed, before it is normalised."""
        return float(torch.tensor(self._logits).exp().sum())

    @property
    def likeliest(self) -> tuple[int, int] | None:
        """The span that the teacher would give; None: no answer."""
        best = max(range(len(self.log_p)), key=self.log_p.__getitem__, default=None)
        if best is None or (self.none is not None and self.none > self.log_p[best]):
            return None
        return self.spans[best]

    @property
    def _logits(self) -> list[float]:
        return [*self.log_p, *([] if self.none is None else [self.none])]

    def probabilities(self, temperature: float) -> tuple[list[float], float]:
        """softmax(log p / T) over all that is listed: of each span, and of no answer."""
        found = torch.softmax(
            torch.tensor(self._logits, dtype=torch.float64) / temperature, 0
        ).tolist()
        return found[: len(self.spans)], sum(found[len(self.spans) :])


def places_of(marks: Marks, windows: Windows, temperature: float) -> list[Tensor]:
    """Of each window, [2, tokens] float32: probabilities of its tokens as start and as end."""
    spans, none = marks.probabilities(temperature)
    tokens = [windows.tokens_of(*span) for span in marks.spans]
    return [_in_window(window, tokens, spans, none) for window in windows.windows]


def _in_window(
    window: Window, tokens: Sequence[tuple[int, int] | None], spans: Sequence[float], none: float
) -> Tensor:
    found = torch.zeros(2, len(window.ids), dtype=torch.float64)
    found[:, NOWHERE] += none
    for place, probability in zip(tokens, spans, strict=True):
        start, end = window.place(*place) if place else (NOWHERE, NOWHERE)
        found[0, start] += probability
        found[1, end] += probability
    return found.float()
