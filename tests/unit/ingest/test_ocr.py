"""Recognised pages: set upright, and nearly every character right."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from potstill.ingest.layout import rows_of
from potstill.ingest.ocr import upright

Ingest = Callable[..., Any]


def quad(left: float, top: float, right: float, bottom: float, degrees: float) -> np.ndarray:
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return corners @ turn.T


@pytest.mark.parametrize("degrees", [-2.0, 0.0, 1.5])
def test_the_rows_of_a_crooked_page_are_found(degrees: float) -> None:
    boxes = [
        quad(left, top, left + 90, top + 11, degrees)
        for top in (100, 114, 128)
        for left in (60, 200, 400)
    ]
    fragments = upright(np.array(boxes), [f"cell {number}" for number in range(9)])
    assert [row.text for row in rows_of(fragments)] == [
        "cell 0 cell 1 cell 2",
        "cell 3 cell 4 cell 5",
        "cell 6 cell 7 cell 8",
    ]


def characters_right(read: str, truth: str) -> float:
    """Share of the true characters, white space aside, that the read text has in order."""
    read, truth = re.sub(r"\s", "", read), re.sub(r"\s", "", truth)
    matcher = difflib.SequenceMatcher(None, read, truth, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(truth)


@pytest.mark.slow
def test_at_least_97_of_100_characters_of_the_scan_are_right(run_ingest: Ingest) -> None:
    scan = run_ingest("sample:handbook-scan.pdf", draft="scan").documents[0]
    whole = run_ingest("sample:handbook.pdf").documents[0]
    spans = {page["number"]: page for page in whole["pages"]}
    truth = "\n".join(
        whole["text"][spans[number]["start"] : spans[number]["end"]] for number in (2, 3, 7)
    )
    assert {page["method"] for page in scan["pages"]} == {"ocr"}
    assert characters_right(scan["text"], truth) >= 0.97
