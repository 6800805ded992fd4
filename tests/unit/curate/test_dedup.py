"""Near-duplicates among rows that share a template, and clusters of many copies."""

from __future__ import annotations

from random import Random

import pytest

from potstill.curate.dedup import CROWD, Text, repeats
from potstill.curate.noise import with_typos
from potstill.curate.text import is_slip, likeness, one_slip_apart, words

LETTERS = "bcdfglmnprst"


def names(count: int, lot: Random) -> list[str]:
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(lot.choice(LETTERS) + lot.choice("aeiou") for _ in range(4)))
    return sorted(found)


def test_rows_of_one_template_are_told_apart_and_misspelt_copies_found() -> None:
    lot = Random(3)
    pairs = zip(names(12 * CROWD, lot), names(12 * CROWD, lot)[::-1], strict=True)
    asked = [f"Who made the main pump in {one}? The firm of {other}" for one, other in pairs]
    copies = {lot.randrange(len(asked)) for _ in range(40)}
    texts = [*asked, *(with_typos(asked[place], 0.1, lot) for place in sorted(copies))]
    found = repeats([Text(tuple(words(one)), str(n)) for n, one in enumerate(texts)], 0.8)
    right = sum(
        repeat is not None and repeat.of == place
        for place, repeat in zip(sorted(copies), found[len(asked) :], strict=True)
    )
    assert right >= 0.97 * len(copies)
    assert sum(repeat is not None for repeat in found[: len(asked)]) == 0


def test_a_crowd_of_copies_leaves_one() -> None:
    text = "Which warden keeps spare valves beside Brannoch kiln during winter months"
    lot = Random(1)
    texts = [text, *(with_typos(text, 0.1, lot) for _ in range(5 * CROWD))]
    found = repeats([Text(tuple(words(one)), str(n)) for n, one in enumerate(texts)], 0.8)
    assert sum(repeat is None for repeat in found) == 1


def test_rows_of_one_family_are_compared_for_equality_alone() -> None:
    texts = ["Who keeps the kiln of Brannoch?", "Who keeps teh kiln of Brannoch?"]
    content = [tuple(words(one)) for one in texts]
    assert repeats([Text(content[0], "a"), Text(content[1], "a")], 0.8) == [None, None]
    assert repeats([Text(content[0], "a"), Text(content[1], "b")], 0.8)[1] is not None
    assert repeats([Text(content[0], "a"), Text(content[0], "a")], 0.8)[1] is not None


def test_a_threshold_of_one_finds_equal_rows_alone() -> None:
    content = [
        tuple(words(one)) for one in ("who keeps it now", "who keeps them now", "Who keeps it now?")
    ]
    found = repeats([Text(one, str(n)) for n, one in enumerate(content)], 1.0)
    assert [repeat and repeat.of for repeat in found] == [None, None, 0]
    assert repeats([], 0.8) == []
    lonely = [Text(tuple(words(one)), one) for one in ("who keeps it", "when was lunch")]
    assert repeats(lonely, 0.8) == [None, None]


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("kiln", "klin", True),
        ("kiln", "kilm", True),
        ("kiln", "kiiln", True),
        ("kiln", "kln", False),  # three letters are too few to be sure of
        ("valve", "valves", True),
        ("valve", "vavle", True),
        ("valve", "evlav", False),
        ("pump", "dame", False),
        ("h12a", "h13a", False),
        ("oil", "oli", False),
        ("boiler", "boiler", True),
    ],
)
def test_what_one_keystroke_makes(one: str, other: str, apart: bool) -> None:
    assert one_slip_apart(one, other) is apart
    assert one_slip_apart(other, one) is apart


def test_letters_and_numerals_name_things() -> None:
    asked = [f"What does the large valve of type {one} in the north hall do?" for one in "BCD"]
    asked += [
        f"What does part {one} of the handbook for wardens say of it?" for one in ("II", "IV")
    ]
    assert (
        repeats([Text(tuple(words(one)), str(n)) for n, one in enumerate(asked)], 0.7) == [None] * 5
    )


def test_two_frequent_words_are_two_words() -> None:
    assert is_slip("loadr", "loader", {"loader": 400, "loadr": 1})
    assert not is_slip("leader", "loader", {"loader": 400, "leader": 300})


def test_order_counts_half() -> None:
    sends = "valve alpha sends steam to boiler beta".split()
    assert likeness(sends, "boiler beta sends steam to valve alpha".split()) < 0.8
    swapped = "valve sends alpha steam to boiler beta".split()
    assert likeness(sends, swapped) > 0.8
