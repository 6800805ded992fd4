"""Every score of one answer: against its gold answers, against its passage, and as a refusal.

In: an answer's text, its gold answers, its passage. Out: `AnswerScores`. Knows nothing of models;
stored answers are scored again by the same function as fresh ones.

    em, f1          SQuAD's; v1.1 rules for rows with an answer, v2.0 rules for those without one
    bleu, chrf, rouge1, rouge2, rougeL    shared wording (`overlap.py`)
    refused         1 where the answer declines: a known phrase, or the row's own words for it
    grounded        share of the answer's words that its passage has: K-Precision (Adlakha et al.
                    2023); None for a refusal, an empty answer or a row without a passage
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.core.refusals import REFUSAL, says_nothing
from potstill.core.scoring import exact_match, normalize_answer, token_f1
from potstill.evaluate.overlap import bleu_counts, chrf, rouge, sentence_bleu
from potstill.records import Example, Turn


@dataclass(frozen=True)
class Gold:
    """What a row's answer is compared with.

    answers: empty: with `v2` the question has no answer, otherwise the right one is not known and
    the answer has no score against it. passage: empty: there is none.
    """

    id: str
    answers: tuple[str, ...]
    kind: str = "qa"
    question: str = ""
    passage: str = ""
    v2: bool = False
    """Scored by the rules of SQuAD v2.0: of data that says where a question has no answer."""
    turns: tuple[Turn, ...] = ()
    """The conversation before the answer, of a row that is one."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of one answer, each from 0 to 1; None: the row has nothing to compare it with."""

    f1: float | None
    em: float | None
    bleu: float | None = None
    chrf: float | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rougeL: float | None = None  # noqa: N815 (its name everywhere)
    refused: float | None = None
    grounded: float | None = None
    bleu_counts: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A JSON value that `from_dict` reads back without loss."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AnswerScores:
        """The inverse of `as_dict`."""
        return cls(**{**value, "bleu_counts": tuple(value["bleu_counts"])})


def score_answer(answer: str, gold: Gold) -> AnswerScores:
    """All scores of one answer. Errors: MissingExtraError without sacreBLEU."""
    said = answer.strip()
    refused = float(declines(said, gold))
    support = None if refused else grounded(said, gold.passage)
    golds = tuple(one for one in gold.answers if one.strip())
    if gold.v2 and not any(normalize_answer(one) for one in golds):
        f1, em = squad_v2("" if refused else said, ())  # to decline is to give no answer
        return AnswerScores(f1, em, refused=refused, grounded=support)
    if not golds:
        return AnswerScores(None, None, refused=refused, grounded=support)
    f1, em = squad_v2(said, golds) if gold.v2 else (token_f1(said, golds), exact_match(said, golds))
    shared = rouge(said, golds)
    return AnswerScores(
        f1=f1,
        em=em,
        bleu=sentence_bleu(said, golds),
        chrf=chrf(said, golds),
        rouge1=shared["rouge1"],
        rouge2=shared["rouge2"],
        rougeL=shared["rougeL"],
        refused=refused,
        grounded=support,
        bleu_counts=bleu_counts(said, golds),
    )


def squad_v2(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """(F1, EM) by the rules of SQuAD v2.0, where a question may have no answer.

    Gold answers that normalise to nothing are none; where none is left, the empty prediction is
    the right one. Source: the official evaluate-v2.0.py (Rajpurkar et al. 2018).
    """
    kept = [gold for gold in golds if normalize_answer(gold)] or [""]
    said = normalize_answer(prediction)
    em = float(any(said == normalize_answer(gold) for gold in kept))
    if not said or kept == [""]:
        return float(any(said == normalize_answer(gold) for gold in kept)), em
    return token_f1(prediction, kept), em


def declines(answer: str, gold: Gold) -> bool:
    """Whether an answer says that it has none.

    Known are English phrases and, in a row of the kind refusal, the row's own words for it, in
    whatever language. An empty answer declines nothing.
    """
    return says_nothing(answer, gold.answers if gold.kind == REFUSAL else ())


def grounded(answer: str, passage: str) -> float | None:
    """Share of the answer's words, normalised as SQuAD does, that the passage has as often."""
    words = Counter(normalize_answer(answer).split())
    if not words or not passage:
        return None
    shared = words & Counter(normalize_answer(passage).split())
    return sum(shared.values()) / sum(words.values())


def gold_of(example: Example) -> Gold:
    """What a test row's answer is compared with."""
    answers = example.answers or (example.turns[-1].content,)
    return Gold(
        id=example.id,
        answers=tuple(one for one in answers if one.strip()),
        kind=example.kind,
        question=example.question,
        passage=passage_of(example),
        turns=example.turns[:-1],
    )


def passage_of(example: Example) -> str:
    """What a row's answer may rest on: its turns before the answer, without the question.

    Empty for a row that has no passage: it is answered from memory.
    """
    if not example.provenance.chunk:
        return ""
    before = "\n".join(turn.content for turn in example.turns[:-1])
    if not example.question:
        return before
    head, _, tail = before.rpartition(example.question)
    return head + tail
