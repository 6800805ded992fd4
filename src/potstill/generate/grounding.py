"""Ties what a teacher says to the sentence of the passage it rests on.

In: a passage, an answer, what the teacher quotes for it. Out: spans of the passage, and how much of
the answer is there. A quotation is looked for as it is, then whatever its white space, capitals and
signs, then with a few letters changed (rapidfuzz, MIT). An answer is supported if every figure in
it stands in the passage, and enough of its telling words near the sentence it rests on.
Pure functions. Knows no model; the teacher as judge is `judging.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from potstill.core.extras import require
from potstill.generate.focus import ABBREVIATION
from potstill.generate.unusable import UnusableError
from potstill.generate.words import (
    TRUTH,
    UNSPACED,
    normal,
    numbers,
    same_word,
    spelt,
    telling,
)
from potstill.records import Span

How = Literal["exact", "normal", "fuzzy", "overlap"]
# A sentence ends at these signs before white space, or at a line that ends a block or table row.
BORDER = re.compile(
    r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+(?=[^\sa-z])|(?<=[\u3002\uff01\uff1f])"
    r"|\n\s*\n|\n(?=.* \| )"
)
NUMBERED = re.compile(
    r"(?:\d{1,3}\.)+|[A-Za-z]\.|\(\w\)\.?"
)  # what a heading or a list starts with
LEAST_LIKE = 88.0  # of 100: a quotation in which about one letter in eight differs
SHORTEST_FUZZY = 12  # characters; shorter texts are like too many things


@dataclass(frozen=True)
class Found:
    """Where a text stands in the passage. `like`: 1 for the same words."""

    span: Span
    how: How
    like: float


def sentences(passage: str) -> list[Span]:
    """The sentences, table rows and headings of a passage, in order; white space is left out."""
    cuts = [0, *(found.end() for found in BORDER.finditer(passage)), len(passage)]
    spans: list[Span] = []
    for start, end in pairwise(cuts):
        part = passage[start:end]
        if not part.strip():
            continue
        first = start + len(part) - len(part.lstrip())
        last = start + len(part.rstrip())
        before = passage[spans[-1].start : spans[-1].end] if spans else ""
        if ABBREVIATION.search(before) or NUMBERED.fullmatch(before):
            spans[-1] = Span(start=spans[-1].start, end=last)
        else:
            spans.append(Span(start=first, end=last))
    return spans


def locate(passage: str, quote: str, near: Span | None = None) -> Found | None:
    """Where a quotation stands. Of several equal places, that inside `near`, else the first."""
    words = quote.split()
    if not words:
        return None
    borders = [r"(?<!\w)", r"(?!\w)"] if not UNSPACED.search(quote) else ["", ""]
    first = borders[0] if words[0][0].isalnum() else ""
    last = borders[1] if words[-1][-1].isalnum() else ""
    loose = re.compile(first + r"\s+".join(map(re.escape, words)) + last)
    if place := _nearest([found.span() for found in loose.finditer(passage)], near):
        return Found(Span(start=place[0], end=place[1]), "exact", 1.0)
    folded, where = _folded(passage)
    wanted = _folded(quote)[0].strip()
    if wanted:
        whole = re.compile(rf"(?<![^ ]){re.escape(wanted)}(?![^ ])")
        places = [(where[f.start()], where[f.end() - 1] + 1) for f in whole.finditer(folded)]
        if place := _nearest(places, near):
            return Found(Span(start=place[0], end=place[1]), "normal", 1.0)
    if len(wanted) < SHORTEST_FUZZY:
        return None
    return _fuzzy(passage, folded, where, wanted)


def _nearest(places: Sequence[tuple[int, int]], near: Span | None) -> tuple[int, int] | None:
    inside = [p for p in places if near and near.start <= p[0] and p[1] <= near.end]
    return next(iter(inside or places), None)


def _folded(text: str) -> tuple[str, list[int]]:
    """Letters and figures, folded, one space for all between; for each the place it came from."""
    signs: list[str] = []
    where: list[int] = []
    for at, sign in enumerate(text):
        for one in unicodedata.normalize("NFKC", sign).casefold():
            if one.isalnum():
                signs.append(one)
                where.append(at)
            elif signs and signs[-1] != " ":
                signs.append(" ")
                where.append(at)
    return "".join(signs), where


def _fuzzy(passage: str, folded: str, where: list[int], wanted: str) -> Found | None:
    fuzz = require("rapidfuzz.fuzz", "generate", "Finding what a teacher quotes")
    found = fuzz.partial_ratio_alignment(wanted, folded, score_cutoff=LEAST_LIKE)
    # The longer of the two texts is searched; a quotation longer than the passage is none of it.
    if found is None or len(wanted) > len(folded) or found.dest_end <= found.dest_start:
        return None
    start, end = where[found.dest_start], where[found.dest_end - 1] + 1
    while start > 0 and passage[start - 1].isalnum():
        start -= 1
    while end < len(passage) and passage[end].isalnum():
        end += 1
    # A wrong figure is one letter in many, and all of the meaning.
    if not numbers(wanted) <= numbers(_folded(passage[start:end])[0]):
        return None
    return Found(Span(start=start, end=end), "fuzzy", found.score / 100)


def share(words: Sequence[str], among: Sequence[str]) -> float:
    """How many of `words` are forms of one of `among`, 0 to 1; 1 if there is none to look for."""
    if not words:
        return 1.0
    known = set(among)
    found = sum(word in known or any(same_word(word, other) for other in known) for word in words)
    return found / len(words)


def support(
    passage: str, question: str, answer: str, evidence: str = "", least: float = 0.6
) -> Found:
    """The sentence that an answer rests on.

    evidence: what the teacher quotes for it, if it was asked to. least: the share of the answer's
    telling words that must stand in that sentence or its neighbours; 0 where passage and answer are
    in different languages: then the quotation is the tie, and the figures.
    Errors: UnusableError `evidence_not_in_passage`, `unsupported_number`, `unsupported`.
    """
    near = None
    if evidence:
        near = locate(passage, evidence)
        if near is None:
            raise UnusableError("evidence_not_in_passage", evidence)
    if strange := sorted(numbers(answer) - numbers(passage) - spelt(passage)):
        raise UnusableError("unsupported_number", f"{', '.join(strange)} in: {answer}")
    parts = sentences(passage)
    place = _place(parts, near.span) if near else _best(passage, parts, question, answer)
    rests = Span(start=parts[place[0]].start, end=parts[place[1]].end)
    truth = normal(answer) in TRUTH
    if not truth and (stands := locate_answer(passage, answer, rests)):
        return stands
    first, last = max(0, place[0] - 1), min(len(parts) - 1, place[1] + 1)
    window = passage[parts[first].start : parts[last].end]
    # Yes, or "it is": then what was asked must stand there.
    said = [word for word in telling(answer) if word not in TRUTH] or telling(question)
    got = share(said, telling(window))
    if got < least:
        raise UnusableError("unsupported", f"{got:.0%} of the words of: {answer}")
    return near if near else Found(rests, "overlap", got)


def locate_answer(passage: str, answer: str, near: Span) -> Found | None:
    """Where the answer itself stands inside a sentence, if it does; never by likeness."""
    found = locate(passage, answer, near) if normal(answer) else None
    inside = found and near.start <= found.span.start and found.span.end <= near.end
    return found if found and inside and found.how in ("exact", "normal") else None


def _place(parts: Sequence[Span], span: Span) -> tuple[int, int]:
    """The first and last sentence that a span touches."""
    touched = [n for n, one in enumerate(parts) if one.start < span.end and span.start < one.end]
    return (touched[0], touched[-1]) if touched else (0, len(parts) - 1)


def _best(passage: str, parts: Sequence[Span], question: str, answer: str) -> tuple[int, int]:
    """The sentence with most of the answer's words, and of those, most of the question's."""
    said, asked = telling(answer) or normal(answer).split(), telling(question)

    def score(span: Span) -> tuple[float, float]:
        words = telling(passage[span.start : span.end])
        return share(said, words), share(asked, words)

    best = max(range(len(parts)), key=lambda n: (*score(parts[n]), -n))
    return best, best
