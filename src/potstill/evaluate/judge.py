"""A model as the judge of answers: two at a time, or one at a time by a rubric.

In: rows with answers of one or two models, a judge behind the port of `inference/base.py`. Out:
`Vote`s and `Grade`s, and what they come to. A person's blind vote is the same record, with
`judge` "human:NAME", and is summed up by the same functions. Knows nothing of runs or files.

A judge prefers what it reads first (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.3), so
each pair is shown in both orders. A model wins a row only if it wins in both; two verdicts that
contradict each other make a tie, and how often that happens is reported as the judge's agreement
with itself. Replies are held to a schema, so that a verdict is always one of A, B and tie.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from potstill.core.scoring import bootstrap, normalize_answer
from potstill.errors import InputError, TeacherError
from potstill.inference.base import Reply, Request, TextModel
from potstill.records import Record, Turn

TIE = "tie"
GRADES = (1, 2, 3, 4, 5)
REPLY_TOKENS = 200
RUBRIC = (
    "5: correct and complete. 4: correct, with a small flaw. 3: partly correct. "
    "2: mostly wrong. 1: wrong, empty or beside the question."
)
_REASON = {"type": "string", "minLength": 1, "maxLength": 240}


class Vote(Record):
    """One verdict on two answers to one row, by a model or by a person who sees no names."""

    row: str = Field(description="Id of the test row.")
    models: tuple[str, str] = Field(description="Whose answers they are, in a fixed order.")
    swapped: bool = Field(description="Whether the second model's answer was shown first.")
    winner: str = Field(description="The better one's name, or tie.")
    judge: str = Field(description="A model reference, or human:NAME.")
    reason: str = ""


class Grade(Record):
    """One grade of one answer."""

    row: str
    model: str
    grade: int = Field(ge=1, le=5)
    judge: str
    asking: int = Field(0, ge=0, description="Which time the same was asked; from 0.")
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """A row to be judged: model -> its answer."""

    row: str
    question: str
    answers: dict[str, str]
    golds: tuple[str, ...] = ()
    passage: str = ""


class _Verdict(Record):
    reason: str
    verdict: Literal["A", "B", "tie"]


class _Graded(Record):
    reason: str
    grade: int = Field(ge=1, le=5)


def judge_pairs(
    cases: Sequence[Case], models: tuple[str, str], judge: TextModel, name: str
) -> tuple[list[Vote], dict[str, Any]]:
    """Ask for each case twice, in both orders; answers that say the same are not asked about.

    Returns the votes and `pair_summary` of them. Errors: InputError if no two answers differ;
    TeacherError for a judge that never decides: only ties, contradictions and unusable replies.
    """
    differing = [
        case
        for case in cases
        if normalize_answer(case.answers[models[0]]) != normalize_answer(case.answers[models[1]])
    ]
    if not differing:
        raise InputError(
            f"{models[0]} and {models[1]} give the same answer to all {len(cases)} rows: there is "
            "nothing to judge."
        )
    asked = [(case, swapped) for case in differing for swapped in (False, True)]
    requests = [_pair_request(case, models, swapped) for case, swapped in asked]
    votes, unusable = [], 0
    replies = _replies(judge, requests, name)
    for place, (case, swapped) in enumerate(asked):
        said = _parsed(replies[place].text, _Verdict)
        if said is None:
            unusable += 1
            continue
        shown = models[::-1] if swapped else models
        winner = TIE if said.verdict == "tie" else shown["AB".index(said.verdict)]
        votes.append(
            Vote(
                row=case.row,
                models=models,
                swapped=swapped,
                winner=winner,
                judge=name,
                reason=said.reason,
            )
        )
    same = [case.row for case in cases if case not in differing]
    found: dict[str, Any] = {"ties": 0, "contradictions": 0}
    if votes:
        found = pair_summary(votes, models, same=same)
    if not votes or not any(found["wins"].values()):
        raise TeacherError(
            f"The judge {name} never decides: of {len(differing)} rows, {found['ties']} are ties, "
            f"{found['contradictions']} change with the order in which the answers are shown, and "
            f"{unusable} of {len(requests)} replies cannot be used.",
            "Take a larger model as judge, or look at more rows.",
        )
    return votes, {**found, "judge": name, "unusable_replies": unusable}


def pair_summary(
    votes: Iterable[Vote], models: tuple[str, str], *, same: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """What votes on one pair come to; a model's and a person's alike.

    `wins` of each, `ties`, `contradictions` (both orders, two winners: a tie), `identical` (rows
    whose answers are the same: ties), `agreement_with_itself` (share of the rows voted on twice),
    `first_shown` (share of decided votes for the answer that was shown first; a half is fair),
    `preference` (share of rows that the first model wins, ties a half, with its interval).
    Errors: InputError for fewer than two rows.
    """
    rows: dict[str, list[Vote]] = {}
    others: set[str] = set()
    for vote in votes:
        if set(vote.models) == set(models):
            rows.setdefault(vote.row, []).append(vote)
        else:
            others.add(" and ".join(vote.models))
    if others and not rows:
        raise InputError(
            f"There is no vote on {' and '.join(models)}.",
            f"There are votes on {', on '.join(sorted(others))}.",
        )
    wins: Counter[str] = Counter()
    contradictions = agreeing = twice = 0
    points = [0.5] * len(same)
    for some in rows.values():
        winners = {vote.winner for vote in some}
        if len(some) > 1:
            twice += 1
            agreeing += len(winners) == 1
        contradictions += set(models) <= winners
        winner = winners.pop() if len(winners) == 1 else TIE
        wins[winner] += 1
        points.append({models[0]: 1.0, models[1]: 0.0}.get(winner, 0.5))
    if len(points) < 2:
        raise InputError(f"A judgement needs at least two rows, and there are {len(points)}.")
    decided = [vote for some in rows.values() for vote in some if vote.winner != TIE]
    first = [vote.winner == vote.models[1 if vote.swapped else 0] for vote in decided]
    interval = bootstrap(points, seed)
    return {
        "models": list(models),
        "rows": len(points),
        "wins": {model: wins[model] for model in models},
        "ties": wins[TIE] - contradictions,
        "contradictions": contradictions,
        "identical": len(same),
        "agreement_with_itself": agreeing / twice if twice else None,
        "first_shown": sum(first) / len(first) if first else None,
        "preference": {
            **interval.as_dict(),
            "significant": interval.low > 0.5 or interval.high < 0.5,
        },
    }


def judge_grades(
    cases: Sequence[Case],
    models: Sequence[str],
    judge: TextModel,
    name: str,
    rubric: str = RUBRIC,
) -> tuple[list[Grade], dict[str, Any]]:
    """Grade every answer from 1 to 5, twice: greedily, and drawn, to see whether the grade holds.

    Returns the grades, and of each model its mean grade with interval; `agreement_with_itself` is
    the share of answers that get the same grade both times. Errors: TeacherError for a judge that
    never decides: no answer gets a grade; InputError for fewer than two graded rows of a model.
    """
    asked = [(case, model, time) for model in models for case in cases for time in (0, 1)]
    requests = [_grade_request(case, model, rubric, time) for case, model, time in asked]
    replies = _replies(judge, requests, name)
    grades = []
    for place, (case, model, time) in enumerate(asked):
        said = _parsed(replies[place].text, _Graded)
        if said is not None:
            grades.append(
                Grade(
                    row=case.row,
                    model=model,
                    grade=said.grade,
                    judge=name,
                    asking=time,
                    reason=said.reason,
                )
            )
    if not grades:
        raise TeacherError(
            f"The judge {name} never decides: none of {len(requests)} replies holds a grade.",
            "Take a larger model as judge.",
        )
    by_answer: dict[tuple[str, str], list[int]] = {}
    for one in grades:
        by_answer.setdefault((one.model, one.row), []).append(one.grade)
    twice = [some for some in by_answer.values() if len(some) > 1]
    means = {
        model: [sum(some) / len(some) for (who, _), some in by_answer.items() if who == model]
        for model in models
    }
    return grades, {
        "judge": name,
        "rubric": rubric,
        "grades": {model: bootstrap(some, 0).as_dict() for model, some in means.items()},
        "agreement_with_itself": (
            sum(len(set(some)) == 1 for some in twice) / len(twice) if twice else None
        ),
        "unusable_replies": len(requests) - len(grades),
    }


def agreement(a: Iterable[Vote], b: Iterable[Vote], models: tuple[str, str]) -> dict[str, Any]:
    """How far two judges, say a model and a person, agree on the rows that both voted on.

    `share` of equal verdicts and Cohen's `kappa` (1960), None where it is not defined.
    """
    left, right = (_verdicts(votes, models) for votes in (a, b))
    both = sorted(left.keys() & right.keys())
    if not both:
        raise InputError("The two judges have no row in common.")
    share = sum(left[row] == right[row] for row in both) / len(both)
    counts = [Counter(side[row] for row in both) for side in (left, right)]
    chance = sum(counts[0][one] * counts[1][one] for one in (*models, TIE)) / len(both) ** 2
    kappa = None if chance == 1 else (share - chance) / (1 - chance)
    return {"rows": len(both), "share": share, "kappa": kappa}


def _verdicts(votes: Iterable[Vote], models: tuple[str, str]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for vote in votes:
        if set(vote.models) == set(models):
            found.setdefault(vote.row, set()).add(vote.winner)
    return {row: next(iter(some)) if len(some) == 1 else TIE for row, some in found.items()}


def _pair_request(case: Case, models: tuple[str, str], swapped: bool) -> Request:
    first, second = models[::-1] if swapped else models
    text = (
        f"{_context(case)}\n\nAnswer A: {_shown(case.answers[first])}\n\n"
        f"Answer B: {_shown(case.answers[second])}\n\n"
        "Which answer is better? Judge what is said, not its length or style. "
        'Say "tie" if neither is better. Give a short reason, then the verdict: A, B or tie.'
    )
    verdict = {"type": "string", "enum": ["A", "B", TIE]}
    return _request(text, {"reason": _REASON, "verdict": verdict})


def _grade_request(case: Case, model: str, rubric: str, time: int) -> Request:
    text = (
        f"{_context(case)}\n\nAnswer: {_shown(case.answers[model])}\n\n"
        f"Grade the answer from 1 to 5. {rubric} Give a short reason, then the grade."
    )
    grade = {"type": "integer", "enum": list(GRADES)}
    return _request(text, {"reason": _REASON, "grade": grade}, temperature=0.7 * time)


def _request(text: str, fields: dict[str, Any], temperature: float = 0.0) -> Request:
    schema = {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }
    return Request(
        messages=(Turn(role="user", content=text),),
        max_tokens=REPLY_TOKENS,
        temperature=temperature,
        schema=schema,
    )


def _replies(judge: TextModel, requests: Sequence[Request], name: str) -> dict[int, Reply]:
    """All replies. Errors: TeacherError if the engine refuses every request, with its reason."""
    replies = dict(judge.complete(requests))
    if all(reply.finish_reason == "error" for reply in replies.values()):
        raise TeacherError(f"The judge {name} refuses every request: {replies[0].text}.")
    return replies


def _context(case: Case) -> str:
    parts = [f"Passage: {case.passage.strip()}"] if case.passage.strip() else []
    parts.append(f"Question: {case.question.strip()}")
    if case.golds:
        parts.append(f"Correct answer: {' / '.join(case.golds)}")
    return "\n\n".join(parts)


def _shown(answer: str) -> str:
    return answer.strip() or "(nothing)"


def _parsed(text: str, kind: type[Any]) -> Any:
    """What a reply says, or None: it was cut off, or an engine did not hold it to the schema."""
    try:
        return kind.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        return None
