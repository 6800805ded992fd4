"""Decides what to ask: which sentences of a chunk, and for which answers.

In: a chunk's text. Out: `Task`s: a sentence or table row, a kind of answer, and every span of it
that may be the answer. Pure functions of the text. Knows no model.

A small model that may ask what it likes asks about the first fact it sees, or about something that
is not there. One request a sentence and kind of answer makes it go through the whole passage, and
an answer that can only be a span of the sentence cannot be invented.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["number", "name", "other"]
KINDS: tuple[Kind, ...] = ("number", "name", "other")

SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'\u201d\u2019)]))\s+(?=[\"'\u201c\u2018(]?[A-Z0-9])"
)
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|Fig|vs|e\.g|i\.e|etc|approx)\.$"
    r"|(?:^|[A-Z][\w.]*\s)[A-Z]\.$"  # an initial: "Maud T.", not the end of "into pond A."
)
WORD = re.compile(r"\S+")
CELL = " | "
ENDS = '.!?"\u201d\u2019)'
EDGES = " \t.,;:!?\"'\u201c\u201d\u2018\u2019()[]{}"
NUMBER = re.compile("two|three|four|five|six|seven|eight|nine|ten|eleven|twelve", re.IGNORECASE)
JOINING = frozenset("of and the de la von van".split())
LIGHT = frozenset(
    "a an the of in on at to for from by with and or but nor so is are was were be been being it "
    "its this that these those which who whom whose as than then if when while because after "
    "before into onto over under per not no only any each every all has have had may must can "
    "could will would shall should do does did he she they his her their there also both very "
    "about up down out off until till between through during within without against".split()
)
ASKING = frozenset("who what which where when why how whose many much long often".split())


@dataclass(frozen=True)
class Task:
    """One pair to ask for: a question about `focus` whose answer is `answer`.

    `shown` is what the teacher sees: the focus itself, or a table row with its column names.
    For a table cell, `row` is the row's first cell and `column` the column's name.
    """

    index: int
    focus: str
    shown: str
    kind: Kind
    answer: str
    row: str = ""
    column: str = ""


def plan(text: str, *, limit: int, min_words: int, max_answer_words: int) -> list[Task]:
    """At most `limit` tasks for a chunk: the first answer of each sentence and table row, then the
    second ones and so on while there is room; numbered in the order of the text."""
    units = [tasks_of(unit, max_answer_words) for unit in units_of(text, min_words)]
    ranked = [
        (rank, place, task) for place, tasks in enumerate(units) for rank, task in enumerate(tasks)
    ]
    chosen = sorted(ranked, key=lambda one: one[:2])[:limit]
    chosen.sort(key=lambda one: (one[1], one[0]))
    return [replace(task, index=index) for index, (_, _, task) in enumerate(chosen)]


@dataclass(frozen=True)
class Unit:
    """A sentence, or a table row with its header."""

    text: str
    header: tuple[str, ...] = ()


def tasks_of(unit: Unit, max_answer_words: int) -> list[Task]:
    """What can be asked about one sentence or table row."""
    if not unit.header:
        return [
            Task(0, unit.text, unit.text, kind, answer)
            for kind, answer in answer_spans(unit.text, max_answer_words)
        ]
    cells = unit.text.split(CELL)
    shown = ". ".join(map(": ".join, zip(unit.header, cells, strict=True))) + "."
    return [
        Task(0, unit.text, shown, kind_of_cell(cell), cell, row=cells[0], column=column)
        for column, cell in list(zip(unit.header, cells, strict=True))[1:]
        if len(cell.split()) <= max_answer_words and cell.strip(EDGES + "-")
    ]


def kind_of_cell(cell: str) -> Kind:
    """A table cell's kind: a figure, a name (it has a capital), or neither."""
    if any(sign.isdigit() for sign in cell):
        return "number"
    return "name" if any(sign.isupper() for sign in cell) else "other"


def units_of(text: str, min_words: int) -> Iterator[Unit]:
    """Sentences of at least `min_words` words, and table rows, each as it stands in the text."""
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if len(lines) > 1 and all(CELL in line for line in lines):
            header = tuple(lines[0].split(CELL))
            yield from (
                Unit(row, header) for row in lines[1:] if row.count(CELL) == len(header) - 1
            )
            continue
        for sentence in split_sentences(" ".join(lines)):
            if len(sentence.split()) >= min_words and sentence[-1] in ENDS:
                yield Unit(sentence)


def split_sentences(line: str) -> list[str]:
    """Cut a paragraph after sentence ends that no abbreviation explains."""
    parts: list[str] = []
    for part in SENTENCE_END.split(line):
        if parts and ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return [part.strip() for part in parts if part.strip()]


def answer_spans(sentence: str, max_words: int) -> list[tuple[Kind, str]]:
    """Every span of a sentence that is worth asking about: figures first, then names.

    A figure comes with what it counts ("at most 46 tonnes" gives "46 tonnes"), a name is a run of
    capitalised words. Where there is neither, the sentence's last words that mean something.
    """
    words = [
        (found.start(), found.end(), found[0].strip(EDGES)) for found in WORD.finditer(sentence)
    ]
    spans: list[tuple[Kind, str]] = []
    at = 0
    while at < len(words):
        kind = _kind(words, at)
        last = at if kind is None else _run_end(sentence, words, at, kind, max_words)
        if kind is not None and not _is_label(words, at, last):
            spans.append((kind, sentence[words[at][0] : words[last][1]].strip(EDGES)))
        at = last + 1
    if not spans and (span := _last_words(sentence, words, max_words)):
        return [("other", span)]
    return sorted(dict.fromkeys(spans), key=lambda one: KINDS.index(one[0]))


Words = list[tuple[int, int, str]]
"""Start, end and bare text of each word of a sentence."""


def _is_figure(word: str) -> bool:
    return any(sign.isdigit() for sign in word) or NUMBER.fullmatch(word) is not None


def _is_capital(word: str) -> bool:
    return word[:1].isupper() and word.lower() not in LIGHT


def _kind(words: Words, at: int) -> Kind | None:
    word = words[at][2]
    if _is_figure(word):
        return "number"
    # A sentence starts with a capital whatever its first word is; two in a row are a name.
    first_of_two = at + 1 < len(words) and _is_capital(words[at + 1][2])
    return "name" if _is_capital(word) and (at > 0 or first_of_two) else None


def _is_label(words: Words, first: int, last: int) -> bool:
    """Spans that nobody asks about: a single letter, or the 1 of "Tank 1"."""
    word = words[first][2]
    if first < last:
        return False
    if len(word) == 1 and word.isalpha():
        return True
    return len(word) < 3 and first > 0 and words[first - 1][2].lower() not in LIGHT


def _run_end(text: str, words: Words, start: int, kind: Kind, max_words: int) -> int:
    """Index of the span's last word."""
    last = start
    unit_may_follow = kind == "number" and not any(sign.isalpha() for sign in words[start][2])
    unit_may_follow |= NUMBER.fullmatch(words[start][2]) is not None
    for at in range(start + 1, min(start + max_words, len(words))):
        word, before = words[at][2], text[words[at - 1][1] - 1]
        following = words[at + 1][2] if at + 1 < len(words) else ""
        if before in ",;:.)":
            break
        if kind == "number" and _is_figure(word):
            last, unit_may_follow = at, True
        elif (_is_capital(word) or word == "May") and (kind == "name" or unit_may_follow):
            last = at  # 14 March 2009
        elif kind == "number" and (
            word == "per" or (unit_may_follow and word.lower() not in LIGHT)
        ):
            last, unit_may_follow = at, word == "per"
        elif word == "and" and kind == "number" and _is_figure(following):
            continue  # 2 hours and 50 minutes
        elif word in JOINING and kind == "name" and _is_capital(following) and len(following) > 1:
            continue  # Gorse and Daughters
        else:
            break
    return last


def _last_words(text: str, words: Words, max_words: int) -> str:
    """The last run of words without light ones: mostly the object of a sentence."""
    end = len(words)
    while end > 0 and words[end - 1][2].lower() in LIGHT:
        end -= 1
    start = end
    while start > max(1, end - max_words) and words[start - 1][2].lower() not in LIGHT:
        start -= 1
    return text[words[start][0] : words[end - 1][1]].strip(EDGES) if 1 <= start < end else ""
