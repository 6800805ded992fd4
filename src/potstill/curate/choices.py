"""The choices of a multiple-choice row, and which of them its answer names.

In: a question and the row's `options`, answers. Out: the question without its choices, the choices,
the words of the right one; or the reason why they cannot be told. Knows nothing of grammar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.curate.text import words
from potstill.records import Example

SIGN = r"[A-Ja-j]|[1-9]|10|[ivx]{1,4}"
MARK = re.compile(rf"(?:(?<=\s)|^)(?:[(\[](?P<a>{SIGN})[)\]]|(?P<b>{SIGN})[).:](?=\s|\S\S))")
ROMAN = "i ii iii iv v vi vii viii ix x".split()
SOLUTION = re.compile(
    r"\s*\b(?:(?:correct|right) )?(?:answer|ans|key)\s*[:=.]\s*\S.*$", re.I | re.S
)
LETTERS = "abcdefghij"
AMBIGUOUS = "ambiguous_answer"
HEADING = re.compile(r"\s*\b(?:options|choices|answers)\s*:\s*$", re.IGNORECASE)
REFERS = re.compile(
    r"\b(?:all|none|both|neither|any|either|each)(?: of)? (?:the |these |those )?"
    r"(?:above|following|options|choices|answers|these|those)\b|^(?:both|neither) [a-j]\b"
    r"|^[a-j](?:,| and| or| &) [a-j]\b|^all of them\b|^none of them\b",
    re.IGNORECASE,
)
ANSWER_LETTER = re.compile(
    r"^\s*(?:the )?(?:correct |right |best )?(?:(?:answer|option|choice)(?: is)?\s*:?\s*)?"
    r"[(\[]?(?P<mark>[A-Ja-j]|[0-9]|10)[)\].:]?\s*$",
    re.IGNORECASE,
)
ANSWER_BOTH = re.compile(r"^\s*[(\[]?(?P<mark>[A-Ja-j]|[1-9]|10)[)\].:]\s*(?P<text>\S.*)$", re.S)
SEVERAL = re.compile(r"^\s*[A-J](?:\s*(?:,|;|/|&|\band\b)\s*[A-J])+\s*$", re.IGNORECASE)


class UnconvertibleError(Exception):
    """Why a row cannot be converted: `reason` for counting, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Choices:
    """A question without its choices, and they."""

    stem: str
    options: tuple[str, ...]
    numbered: bool = False
    """Whether their marks are numbers, so that a number names one. Else nobody said whether the
    first is 0 or 1, and a guess would teach wrong answers."""


def read_choices(question: str, options: Sequence[str]) -> Choices:
    """Question and choices apart. Errors: UnconvertibleError with no_options."""
    given = tuple(one.strip() for one in options if one.strip())
    found = _inline(question)
    if len(given) >= 2:
        cleaned = tuple(_unmarked(one, place) for place, one in enumerate(given))
        repeated = found and {_plain(one) for one in found.options} == set(map(_plain, cleaned))
        if found and repeated:
            return Choices(found.stem, cleaned, found.numbered)
        return Choices(question.strip(), cleaned)
    if found is None:
        raise UnconvertibleError("no_options", f"no choices in {question[-60:]!r} or in columns")
    return found


def _inline(question: str) -> Choices | None:
    """The choices that stand in a question: A) … B) …, from the first mark on, in order."""
    marks = list(MARK.finditer(question))
    for number, first in enumerate(marks):
        kind = _kind(first)
        if _rank(first, kind) != 0 or not question[: first.start()].strip():
            continue
        run: list[re.Match[str]] = []
        for mark in marks[number:]:
            if _kind(mark, kind) == kind and _rank(mark, kind) == len(run):
                run.append(mark)
        if len(run) < 2:
            continue
        ends = [one.start() for one in run[1:]] + [len(question)]
        options = [
            SOLUTION.sub("", question[one.end() : end]).strip().rstrip(",;").strip()
            for one, end in zip(run, ends, strict=True)
        ]
        if all(options):
            stem = HEADING.sub("", question[: first.start()]).strip()
            return Choices(stem, tuple(options), kind[0] in ("digit", "roman"))
    return None


def _kind(mark: re.Match[str], like: tuple[str, str] | None = None) -> tuple[str, str]:
    """What marks of one list share: numerals or case, and the signs around them.

    like: the list's kind, where it is known; "i" is a letter after h, else a Roman one.
    """
    sign = mark["a"] or mark["b"]
    case = "digit" if sign.isdigit() else "upper" if sign.isupper() else "lower"
    if sign in ROMAN and not (like and like[0] == "lower"):
        case = "roman"
    return case, mark[0].replace(sign, "")


def _rank(mark: re.Match[str], kind: tuple[str, str]) -> int:
    sign = mark["a"] or mark["b"]
    if kind[0] == "roman":
        return ROMAN.index(sign)
    return int(sign) - 1 if sign.isdigit() else LETTERS.find(sign.lower())


def _unmarked(option: str, place: int) -> str:
    """A choice of a column without a mark of its own, if it is the one of its place."""
    found = ANSWER_BOTH.match(option)
    if found and _place(found["mark"]) == place:
        return found["text"].strip()
    return option


def _place(mark: str) -> int:
    return int(mark) - 1 if mark.isdigit() else LETTERS.index(mark.lower())


def right_choice(answers: Sequence[str], options: Sequence[str], numbered: bool = False) -> str:
    """The words of the right choice. numbered: whether a number names one.

    Errors: UnconvertibleError names what is wrong.
    """
    plain = [_plain(option) for option in options]
    found = [_choice(answer, plain, numbered) for answer in answers]
    if any(SEVERAL.match(answer) for answer in answers) and None in found:
        raise UnconvertibleError("several_right_options", " / ".join(answers))
    places = {place for place in found if place is not None}
    if not places:
        mark = ANSWER_LETTER.match(answers[0])
        if mark and mark["mark"].isdigit() and not numbered:
            raise UnconvertibleError(
                AMBIGUOUS,
                f"the answer is the number {mark['mark']}, and the choices have no numbers; write "
                "its letter or its words",
            )
        raise UnconvertibleError(
            "answer_not_an_option", f"{answers[0]!r} is none of {', '.join(options)}"
        )
    if len(places) > 1:
        raise UnconvertibleError("several_right_options", " / ".join(answers))
    right = options[places.pop()].strip().rstrip(".").strip()
    if REFERS.search(right):
        raise UnconvertibleError("answer_refers_to_options", right)
    return right


def _choice(answer: str, plain: Sequence[str], numbered: bool) -> int | None:
    """Which choice an answer names: by its words, else by its mark, else by both."""
    if _plain(answer) in plain:
        return plain.index(_plain(answer))
    mark = ANSWER_LETTER.match(answer)
    if mark and (numbered or not mark["mark"].isdigit()):
        place = _place(mark["mark"])
        if 0 <= place < len(plain):
            return place
    both = ANSWER_BOTH.match(answer)
    if both and _plain(both["text"]) in plain:
        return plain.index(_plain(both["text"]))
    return None


def _plain(text: str) -> str:
    return " ".join(words(text)) or text.strip()


def has_choices(example: Example) -> bool:
    """Whether the question of a plain row lists choices, and its answer names one of them."""
    found = _inline(example.question)
    if found is None:
        return False
    try:
        right_choice(example.answers, found.options, found.numbered)
    except UnconvertibleError as failure:
        return failure.reason == AMBIGUOUS  # it names one, nobody knows which
    return True
