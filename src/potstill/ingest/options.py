"""The choices of a multiple-choice row, and which of them its answer names.

In: cells. Out: choices with their letters; the right one's text, or `UnusableError` where the
answer names none, or could name two. Knows no columns.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from potstill.ingest.content import UnusableError

MARKED = re.compile(r"^\(?([A-Za-z]|\d{1,2})[.):]\s*(.+)$", re.DOTALL)
LETTER = re.compile(r"^(?:option|choice)?\s*\(?([A-Za-z])[.):]?\)?$", re.IGNORECASE)
LETTERED = re.compile(r"^\(?([A-Za-z])[.):]\)?\s+(.+)$", re.DOTALL)
NUMBER = re.compile(r"^\d{1,2}$")
SEPARATORS = ("\n", "|", ";")


@dataclass(frozen=True)
class Choice:
    """One choice. Its text is empty where the cell was."""

    letter: str
    text: str


def choices_of(cells: list[Any]) -> tuple[Choice, ...]:
    """The choices in one cell that holds them all, or in one cell for each."""
    value = cells[0] if len(cells) == 1 else cells
    if isinstance(value, str):
        value = _parsed(value)
    letters: list[str] = []
    if isinstance(value, dict):
        if isinstance(value.get("text"), list):  # ARC: texts and their labels
            letters = [str(one) for one in value.get("label") or []]
            value = value["text"]
        else:  # {"A": "...", "B": "..."}
            letters, value = [str(one) for one in value], list(value.values())
    if not isinstance(value, list):
        return ()
    texts = ["" if one is None else str(one).strip() for one in value]
    if not letters and sum(map(bool, texts)) > 1:
        texts = _without_marks(texts)
    if sum(map(bool, texts)) < 2:
        return ()
    if len(letters) != len(texts):
        letters = list(ascii_uppercase[: len(texts)])
    return tuple(Choice(letter, text) for letter, text in zip(letters, texts, strict=False))


def _parsed(value: str) -> list[Any] | dict[str, Any]:
    """A cell with all choices: JSON, or parted by line ends, bars or semicolons."""
    if value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list | dict):
            return found
    for separator in SEPARATORS:
        if separator in value.strip():
            return [one for one in value.strip().split(separator) if one.strip()]
    return []


def _without_marks(texts: list[str]) -> list[str]:
    """Choices without their own "A)", where each has the mark that its place gives it."""
    found = [MARKED.match(text) for text in texts]
    for marks in (ascii_uppercase, ascii_uppercase.lower(), "123456789"):
        if len(found) <= len(marks) and all(
            match is not None and match[1] == mark
            for match, mark in zip(found, marks, strict=False)
        ):
            return [match[2].strip() for match in found if match is not None]
    return texts


def listed(choices: tuple[Choice, ...]) -> str:
    """The choices as lines, each with its letter."""
    return "\n".join(f"{one.letter}) {one.text}" for one in choices if one.text)


def chosen(value: Any, answer: str, choices: tuple[Choice, ...], first: int | None) -> str:
    """The text of the choice that an answer names: by its text, its letter, or its number.

    Errors: UnusableError with the reason answer_not_an_option, or ambiguous_answer for a number
    while nobody said what number the first option has.
    """
    words = " ".join(answer.split()).casefold()
    for one in choices:
        if one.text and " ".join(one.text.split()).casefold() == words:
            return one.text
    by_letter = {one.letter.casefold(): one.text for one in choices}
    letter = LETTER.match(answer) or LETTERED.match(answer)
    if letter and by_letter.get(letter[1].casefold()):
        return by_letter[letter[1].casefold()]
    if answer.strip() in by_letter and by_letter[answer.strip()]:  # labels of the data's own
        return by_letter[answer.strip()]
    if NUMBER.match(answer) and not isinstance(value, bool):
        if first is None:
            raise UnusableError(
                "ambiguous_answer",
                f"the answer is the number {answer}; say with ingest.rows.first_option whether the "
                "first option is 0 or 1",
            )
        place = int(answer) - first
        if 0 <= place < len(choices) and choices[place].text:
            return choices[place].text
    raise UnusableError(
        "answer_not_an_option", f"the answer {answer[:60]!r} is none of the {len(choices)} options"
    )
