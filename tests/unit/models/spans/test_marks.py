"""What a teacher says of spans, on the places of windows."""

from __future__ import annotations

import math

import pytest
import torch
from span_models import word_tokenizer

from potstill.models.spans.marks import Marks, places_of
from potstill.models.spans.windows import encode

PASSAGE = "the boiler of unit holds litres and the keeper notes the time"
TOKENIZER = word_tokenizer()
MARKS = Marks(
    id="row", spans=((4, 10), (4, 18), (19, 31)), log_p=(math.log(0.4), math.log(0.2), -30.0),
    none=math.log(0.2),
)  # fmt: skip


def test_probabilities_add_up_and_a_temperature_flattens_them() -> None:
    spans, none = MARKS.probabilities(1.0)
    assert spans == pytest.approx([0.5, 0.25, 0.0], abs=1e-9)
    assert none == pytest.approx(0.25)
    hot, cold = MARKS.probabilities(10.0), MARKS.probabilities(0.1)
    assert max(hot[0]) < 0.5 < max(cold[0])
    assert sum(hot[0]) + hot[1] == pytest.approx(1.0)
    assert MARKS.coverage == pytest.approx(0.8)
    assert MARKS.likeliest == (4, 10)
    assert Marks(id="x", spans=((0, 3),), log_p=(-2.0,), none=-1.0).likeliest is None


def test_a_window_holds_what_it_can_and_the_rest_is_no_answer() -> None:
    windows = encode(TOKENIZER, "what", PASSAGE, 7, 0)  # three words a window
    found = places_of(MARKS, windows, 1.0)
    first, at = found[0], windows.windows[0].at
    assert windows.windows[0].count == 3
    # "boiler" is in the window; "boiler of unit" ends in the next one.
    assert first[0, at + 1] == pytest.approx(0.5)
    assert first[1, at + 1] == pytest.approx(0.5)
    assert first[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert all(one.sum(-1).tolist() == pytest.approx([1.0, 1.0]) for one in found)
    assert found[-1][:, 0].tolist() == pytest.approx([1.0, 1.0])


def test_characters_of_another_tokenizer_fall_into_the_tokens_that_hold_them() -> None:
    windows = encode(TOKENIZER, "what", PASSAGE, 40, 0)
    at = windows.windows[0].at
    marks = Marks(
        id="x", spans=((6, 16), (5, 17)), log_p=(-1.0, -1.0)
    )  # "iler of un", "oiler of uni"
    (found,) = places_of(marks, windows, 1.0)
    assert found[0, at + 1] == pytest.approx(1.0)
    assert found[1, at + 3] == pytest.approx(1.0)
    assert torch.count_nonzero(found) == 2
