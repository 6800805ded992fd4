"""Which signs stand for a blank."""

from __future__ import annotations

import pytest

from potstill.core.blanks import ANY_BLANK, BLANK


@pytest.mark.parametrize(
    "blank", ["__", "_____", "[____]", "[blank]", "[Mask]", "(blank)", "<blank>", "....", "____s"]
)
def test_a_blank_is_one_blank(blank: str) -> None:
    for pattern in (BLANK, ANY_BLANK):
        assert len(pattern.findall(f"The kiln is lit at {blank}")) == 1
        assert pattern.sub("", f"{blank.removesuffix('s')} is lit.") == " is lit."


@pytest.mark.parametrize(
    "text",
    ["What does __init__ do?", "Is my__name a name?", "What came next....", "One [...] two…"],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert BLANK.search(text) is None


@pytest.mark.parametrize("blank", ["[...]", "[…]", "[_]", "……", "next...."])
def test_a_sentence_that_has_one_may_write_it_in_more_ways(blank: str) -> None:
    assert len(ANY_BLANK.findall(f"The kiln is {blank} at noon")) == 1
