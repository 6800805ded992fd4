"""Finds training rows that ask what an evaluation set asks, in other words or with slips.

In: the questions of evaluation sets, rows. Out: what a row repeats, if anything. Knows nothing of
splits, and of files only the two forms that evaluation sets come in.

A row leaks if
- it shares so many words in a row with a question or its answer (n-gram overlap, as in Brown et
  al., "Language Models are Few-Shot Learners", 2020, appendix C), or
- its question has the same telling words in any order, mistyped ones set right, or
- its answer is the same and its question shares at least half of the telling words: a paraphrase.
Figures in the two questions must be the same for the last two. Where both are asked about a
passage, an equal question alone is no leak: "When was it built?" asks each passage something else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.curate.text import COMMON, figures, mended, one_slip_apart, words
from potstill.errors import InputError
from potstill.records import Example

PARAPHRASE = 0.5  # share of the telling words, where the answers are the same
PLAIN_ANSWER = 0.8  # the same, where the answer is one that many questions have
FEWEST_SHARED = 3  # words, where each has its passage: two say little of a pair
MANY_ROWS = 200  # rows that share a word or an answer: it does not tell them apart
UNLIKE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON raises that holds something else than it should."""
ENDINGS = ("ings", "ing", "ies", "ied", "es", "ed", "s", "e", "y")


@dataclass(frozen=True)
class Asked:
    """One question of an evaluation set."""

    name: str
    """Which, for people."""
    question: str
    answers: tuple[str, ...]
    passage: bool
    """Whether it is asked about a passage."""


@dataclass(frozen=True)
class Leak:
    """What a row repeats, and how: n_gram, same_question or paraphrase."""

    of: str
    kind: str


@dataclass(frozen=True)
class _Content:
    words: tuple[str, ...]
    """The telling ones, sorted."""
    figures: frozenset[str]
    answers: frozenset[tuple[str, ...]]
    passage: bool


class Evaluation:
    """The questions that nothing in training may repeat."""

    def __init__(self, n: int) -> None:
        """n: how many words in a row are a leak by themselves."""
        self.n = n
        self._asked: list[tuple[str, _Content]] = []
        self._n_grams: dict[tuple[str, ...], int] = {}
        self._by_word: dict[str, list[int]] = {}
        self._by_answer: dict[tuple[str, ...], list[int]] = {}
        self._slips: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, one: Asked) -> None:
        """Protect a question. Later rows must not repeat it."""
        place = len(self._asked)
        content = _content(one)
        self._asked.append((one.name, content))
        for text in (one.question, *one.answers):
            for gram in self._grams(text):
                self._n_grams.setdefault(gram, place)
        for word in set(content.words):
            if word not in self._by_word:
                for key in _deletions(word):
                    self._slips.setdefault(key, set()).add(word)
            self._by_word.setdefault(word, []).append(place)
        for answer in content.answers:
            self._by_answer.setdefault(answer, []).append(place)

    def leak(self, row: Asked) -> Leak | None:
        """What the row repeats, if anything."""
        for text in (row.question, *row.answers):
            for gram in self._grams(text):
                if (place := self._n_grams.get(gram)) is not None:
                    return Leak(self._asked[place][0], "n_gram")
        mine = _content(row)
        if not mine.words:
            return None
        for place in self._likely(mine):
            name, theirs = self._asked[place]
            if mine.figures != theirs.figures:
                continue
            same_answer = bool(mine.answers & theirs.answers)
            if not same_answer:
                if mine.words == theirs.words and not (mine.passage and theirs.passage):
                    return Leak(name, "same_question")
                continue
            right = Counter(map(stem, mended(mine.words, theirs.words, _is_slip)))
            other = Counter(map(stem, theirs.words))
            if right == other:
                return Leak(name, "same_question")
            shared = (right & other).total()
            share = shared / min(right.total(), other.total())
            if mine.passage and theirs.passage and shared < FEWEST_SHARED:
                continue
            if share >= self._needed(mine.answers & theirs.answers):
                return Leak(name, "paraphrase")
        return None

    def _needed(self, answers: frozenset[tuple[str, ...]]) -> float:
        """Least share of words: an answer that many questions have says little of a pair."""
        frequent = min(len(self._by_answer[answer]) for answer in answers) > MANY_ROWS // 4
        plain = all(len("".join(answer)) <= 3 or answer in PLAIN for answer in answers)
        return PLAIN_ANSWER if frequent or plain else PARAPHRASE

    def _likely(self, mine: _Content) -> list[int]:
        """Places with the row's answer, and those with all of its rarer words that are known."""
        known = [self._known(word) for word in set(mine.words)]
        groups = sorted(
            ([self._by_word[one] for one in words] for words in known if words),
            key=lambda group: sum(map(len, group)),
        )
        rarer = [one for one in groups if sum(map(len, one)) <= MANY_ROWS] or groups[:1]
        shared: Counter[int] = Counter()
        for group in rarer:
            shared.update({place for places in group for place in places})
        found = {place for place, count in shared.items() if count == len(rarer)}
        same = {place for answer in mine.answers for place in self._by_answer.get(answer, ())}
        found |= same if len(same) <= MANY_ROWS else same & shared.keys()
        return sorted(found)

    def _known(self, word: str) -> set[str]:
        """The word and those it may be a slip of, as far as the evaluation sets have them."""
        found = {word} & self._by_word.keys()
        for key in _deletions(word):
            found.update(other for other in self._slips.get(key, ()) if one_slip_apart(word, other))
        return found

    def _grams(self, text: str) -> Iterator[tuple[str, ...]]:
        found = words(text)
        for place in range(len(found) - self.n + 1):
            yield tuple(found[place : place + self.n])


PLAIN = frozenset({("yes",), ("no",), ("true",), ("false",), ("none",), ("both",)})


def asked(example: Example, name: str) -> Asked:
    """A row as a question."""
    question = example.question or next(
        (turn.content for turn in reversed(example.turns) if turn.role == "user"), ""
    )
    return Asked(name, question, example.answers, bool(example.provenance.chunk))


def read_evaluation(path: Path, name: str) -> Iterator[Asked]:
    """The questions of a file: JSON Lines with question and answer or answers, or SQuAD JSON.

    Errors: InputError names the file and the line that is neither.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read as text in UTF-8: {error}.") from error
    if path.suffix.lower() == ".json":
        yield from _squad(text, name)
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield Asked(
                f"{name}, line {number}",
                str(row["question"]),
                tuple(_answers(row)),
                bool(row.get("context") or row.get("passage")),
            )
        except UNLIKE as error:
            raise InputError(
                f"{name}, line {number}: not an evaluation row ({type(error).__name__}: {error}).",
                'Each line needs "question" and "answer" (or "answers"); SQuAD is named .json.',
            ) from error


def _squad(text: str, name: str) -> Iterator[Asked]:
    try:
        for article in json.loads(text)["data"]:
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    texts = tuple(str(answer["text"]) for answer in one.get("answers", ()))
                    yield Asked(f"{name}, {one.get('id', '')}", str(one["question"]), texts, True)
    except UNLIKE as error:
        raise InputError(
            f"{name}: not a SQuAD file ({type(error).__name__}: {error}).",
            "It needs data, paragraphs and qas; JSON Lines are named .jsonl.",
        ) from error


def _answers(row: dict[str, Any]) -> list[str]:
    """The gold answers of a JSON line, in any of the usual forms."""
    found = row.get("answers", row.get("answer", []))
    if isinstance(found, dict):  # as the datasets library writes SQuAD's
        found = found["text"]
    values = found if isinstance(found, list) else [found]
    return [str(one["text"]) if isinstance(one, dict) else str(one) for one in values]


def _content(one: Asked) -> _Content:
    found = words(one.question)
    content = sorted(word for word in found if word not in COMMON) or sorted(found)
    return _Content(tuple(content), figures(found), frozenset(map(_key, one.answers)), one.passage)


def _key(answer: str) -> tuple[str, ...]:
    """An answer's words without the common ones, so that "at 05:40" is "05:40"."""
    found = words(answer)
    return tuple(word for word in found if word not in COMMON) or tuple(found)


def stem(word: str) -> str:
    """A word without an English ending, so that stored and stores are one word."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and word.isalpha():
            return word[: -len(ending)]
    return word


def _is_slip(one: str, other: str) -> bool:
    """Three letters are enough here: the answers must be the same, too."""
    return one_slip_apart(one, other, 3)


def _deletions(word: str) -> Sequence[str]:
    """The word and what is left without one of its letters: what two words one slip apart share."""
    return [word, *(word[:place] + word[place + 1 :] for place in range(len(word)))]
