"""A reply that goes round in circles is ended; one that only repeats a word is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.serve.loops import UntilLoop, ends_in_loop


@pytest.mark.parametrize(
    "text",
    [
        "Sieve-A-A-A-A-A-A-A-A-A",
        "the grader is the grader is the grader is the grader is ",
        "o" * 16,
    ],
)
def test_a_loop_is_seen(text: str) -> None:
    assert ends_in_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, no, no.",
        "1,000,000 litres",
        "The answer is 46 tonnes.",
        "ha ha ha",
        "| --- | --- |",
    ],
)
def test_ordinary_answers_are_let_through(text: str) -> None:
    assert not ends_in_loop(text)
    pieces = UntilLoop(text)
    assert "".join(pieces) == text
    assert not pieces.looped


@given(
    st.text(alphabet="abc d", max_size=20),
    st.text(alphabet="abcdefgh", min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_an_endless_loop_ends_soon_however_it_is_cut(start: str, unit: str, size: int) -> None:
    text = start + unit * 200
    pieces = UntilLoop(text[at : at + size] for at in range(0, len(text), size))
    said = "".join(pieces)
    assert pieces.looped
    assert text.startswith(said)
    assert len(said) <= len(start) + max(5 * len(unit), 16 + len(unit)) + size
