"""Values of trials in the terminal and on the page: one form for both."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from potstill.tune import Study
from potstill.tune.display import SearchDisplay
from potstill.tune.words import STATES, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012345678, "0.001235"), (2.0, "2"), (17, "17"), (True, "true"), (None, "null"),
        ("forward_kl", "forward_kl"), ({"jsd": 0.5}, '{"jsd": 0.5}'), (["a"], '["a"]'),
    ],
)  # fmt: skip
def test_values_are_short_and_written_as_in_a_recipe(value: Any, text: str) -> None:
    assert shown(value) == text


def test_the_terminal_says_what_came_of_a_trial_in_the_pages_words() -> None:
    said = io.StringIO()
    display = SearchDisplay(Console(file=said, width=200), Study.load("quickstart"))
    for number, state in enumerate(("complete", "pruned", "failed")):
        display(
            {
                "stage": "",
                "kind": "trial_finished",
                "trial": number,
                "state": state,
                "figures": {},
                "notes": {"seconds": 3.0},
                "values": {"distill.learning_rate": 0.0012345678},
                "curve": [],
                "best": [0],
                "ended": number,
            }
        )
    lines = said.getvalue().splitlines()
    for line, state in zip(lines, ("complete", "pruned", "failed"), strict=True):
        assert STATES[state] in line
        assert "learning_rate 0.001235" in line
