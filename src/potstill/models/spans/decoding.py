"""Which span of a passage answers, by a model's start and end logits of all its windows.

In: `Windows` and the logits of each. Out: the likeliest span with its probability, and that of no
answer; or the most likely spans. Knows no tokenizer and no model.

A span is as good as the sum of its start's and its end's logit, in the window that rates it
highest. No answer is as good as position 0 of the window that rates it lowest: there is one in the
passage if there is one anywhere. Probabilities are the softmax over all spans that are allowed
and no answer: they add up to 1. Source of the scores: Devlin et al. 2019, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.models.spans.windows import Windows

Logits = Sequence[tuple[Tensor, Tensor]]
"""Of each window the logits of its tokens as start and as end, [tokens] float each."""


@dataclass(frozen=True)
class SpanAnswer:
    """An answer: the passage's own words at [start, end), and how probable it is, 0 to 1.

    No answer is the empty text at 0 to 0, with its own probability as score.
    """

    answer: str
    score: float
    start: int
    end: int
    no_answer: float
    """How probable it is that the passage does not answer."""


@dataclass(frozen=True)
class Scored:
    """spans: [tokens, lengths] log-probabilities, -inf where no window has the span; `none`: that
    of no answer. All of them, exponentiated, add up to 1."""

    spans: Tensor
    none: float


def scored(windows: Windows, logits: Logits, max_answer_tokens: int) -> Scored:
    """The distribution over all spans of at most so many tokens, and no answer; in float64."""
    total = len(windows.offsets)
    longest = max(1, min(max_answer_tokens, total))
    spans = torch.full((total, longest), -torch.inf, dtype=torch.float64)
    nones = []
    for window, (starts, ends) in zip(windows.windows, logits, strict=True):
        inside = slice(window.at, window.at + window.count)
        nones.append(starts[0].double() + ends[0].double())
        if not window.count:
            continue
        padded = torch.cat([ends[inside].double(), ends.new_full((longest - 1,), -torch.inf)])
        found = starts[inside].double()[:, None] + padded.unfold(0, longest, 1)
        own = spans[window.first : window.first + window.count]
        own.copy_(torch.maximum(own, found))
    none = torch.stack(nones).min()
    whole = torch.logsumexp(torch.cat([spans.flatten(), none[None]]), 0)
    return Scored(spans - whole, float(none - whole))


def best(windows: Windows, passage: str, found: Scored, threshold: float | None) -> SpanAnswer:
    """The likeliest span, or no answer.

    threshold: no answer must be so many nats likelier than the best span; None: always a span.
    """
    no_answer = float(torch.tensor(found.none).exp())
    if not found.spans.numel():
        return SpanAnswer("", no_answer, 0, 0, no_answer)
    highest = float(found.spans.max())
    if threshold is not None and found.none - highest > threshold:
        return SpanAnswer("", no_answer, 0, 0, no_answer)
    place, length = divmod(int(found.spans.argmax()), found.spans.shape[1])
    start, end = _trimmed(passage, windows.offsets[place][0], windows.offsets[place + length][1])
    score = float(found.spans[place, length].exp())
    return SpanAnswer(passage[start:end], score, start, end, no_answer)


def margin(found: Scored) -> float:
    """How many nats likelier the best span is than no answer; -inf for a passage without a span."""
    return float(found.spans.max()) - found.none if found.spans.numel() else -math.inf


def likeliest(windows: Windows, found: Scored, count: int) -> list[tuple[int, int, float]]:
    """(first character, end, log-probability) of the `count` likeliest spans, the best first."""
    flat = found.spans.flatten()
    values, places = flat.topk(min(count, int(flat.isfinite().sum())))
    spans = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        first, length = divmod(place, found.spans.shape[1])
        start, end = windows.offsets[first][0], windows.offsets[first + length][1]
        spans.append((start, end, value))
    return spans


def marginals(found: Scored) -> Tensor:
    """Log-probabilities of each passage token as start and as end, and, last, of no answer:
    [2, tokens + 1]."""
    total, longest = found.spans.shape
    starts = found.spans.logsumexp(1)
    ends = torch.full((longest, total), -torch.inf, dtype=found.spans.dtype)
    for length in range(longest):
        ends[length, length:] = found.spans[: total - length, length]
    none = torch.tensor([found.none], dtype=found.spans.dtype)
    return torch.stack([torch.cat([starts, none]), torch.cat([ends.logsumexp(0), none])])


def _trimmed(passage: str, start: int, end: int) -> tuple[int, int]:
    """Without the white space that some tokenizers count to their tokens."""
    text = passage[start:end]
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())
