"""The likeliest span against a search through all spans, written plainly in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from span_models import WORDS, word_tokenizer

from potstill.models.spans.decoding import Logits, best, likeliest, scored
from potstill.models.spans.windows import Windows, encode

TOKENIZER = word_tokenizer()


def plain(
    windows: Windows, logits: Logits, longest: int
) -> tuple[dict[tuple[int, int], float], float]:
    """Every span by its characters, and no answer: probabilities."""
    spans: dict[tuple[int, int], float] = {}
    none = math.inf
    for window, (starts, ends) in zip(windows.windows, logits, strict=True):
        none = min(none, float(starts[0]) + float(ends[0]))
        for a in range(window.count):
            for b in range(a, min(window.count, a + longest)):
                value = float(starts[window.at + a]) + float(ends[window.at + b])
                first = windows.offsets[window.first + a][0]
                end = windows.offsets[window.first + b][1]
                spans[first, end] = max(spans.get((first, end), -math.inf), value)
    whole = math.fsum(math.exp(value) for value in [*spans.values(), none])
    return {place: math.exp(one) / whole for place, one in spans.items()}, math.exp(none) / whole


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=24),
    room=st.integers(2, 12),
    longest=st.integers(1, 30),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([None, -1.0, 0.0, 2.0]),
)
def test_decoding_is_a_search_through_all_spans(
    words: list[str], room: int, longest: int, seed: int, threshold: float | None
) -> None:
    passage = " ".join(words)
    windows = encode(TOKENIZER, "what", passage, room + 4, room // 2)
    lot = torch.Generator().manual_seed(seed)
    logits = [
        (3 * torch.randn(len(one.ids), generator=lot), 3 * torch.randn(len(one.ids), generator=lot))
        for one in windows.windows
    ]
    spans, none = plain(windows, logits, longest)
    found = scored(windows, logits, longest)
    assert math.isclose(math.exp(found.none), none, rel_tol=1e-5)
    assert math.isclose(float(found.spans.exp().sum()) + none, 1.0, rel_tol=1e-6)
    answer = best(windows, passage, found, threshold)
    place = max(spans, key=lambda one: spans[one])
    if threshold is not None and math.log(none) - math.log(spans[place]) > threshold:
        assert (answer.answer, answer.start, answer.end) == ("", 0, 0)
        assert math.isclose(answer.score, none, rel_tol=1e-5)
    else:
        assert (answer.start, answer.end) == place
        assert answer.answer == passage[answer.start : answer.end]
        assert math.isclose(answer.score, spans[place], rel_tol=1e-5)
    some = likeliest(windows, found, 5)
    ranked = sorted(spans.values(), reverse=True)[:5]
    assert [math.exp(one[2]) for one in some] == pytest.approx(ranked, rel=1e-5)


def test_question_and_padding_can_never_be_the_answer() -> None:
    windows = encode(TOKENIZER, "what is", "the boiler holds litres", 32, 0)
    window = windows.windows[0]
    starts, ends = torch.zeros(len(window.ids)), torch.zeros(len(window.ids))
    starts[1], ends[2] = 50.0, 50.0  # the question's
    starts[window.at + 1], ends[window.at + 3] = 5.0, 5.0
    ends[window.at] = 9.0  # before the likeliest start
    answer = best(windows, "the boiler holds litres", scored(windows, [(starts, ends)], 8), 0.0)
    assert answer.answer == "boiler holds litres"


def test_no_answer_needs_every_window_to_say_so() -> None:
    passage = "the boiler of unit holds litres"
    windows = encode(TOKENIZER, "what", passage, 7, 0)
    logits = []
    for window in windows.windows:
        starts, ends = torch.zeros(len(window.ids)), torch.zeros(len(window.ids))
        starts[0] = ends[0] = 4.0  # nothing here
        logits.append((starts, ends))
    assert best(windows, passage, scored(windows, logits, 8), 0.0).answer == ""
    last = windows.windows[-1]
    logits[-1][0][last.at] = logits[-1][1][last.at] = 6.0
    logits[-1][0][0] = logits[-1][1][0] = 0.0
    found = best(windows, passage, scored(windows, logits, 8), 0.0)
    assert found.answer == passage[found.start : found.end] == "unit"
