"""Judges of known habits: fair ones, biased ones, broken ones; and people's votes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from potstill.errors import InputError, TeacherError
from potstill.evaluate.judge import (
    Case,
    Vote,
    agreement,
    judge_grades,
    judge_pairs,
    pair_summary,
)
from potstill.inference.base import Reply, Request

MODELS = ("small", "big")
CASES = [
    Case(f"r{n}", f"Question {n}?", {"small": "no" if n % 2 else "42", "big": "42 turns"}, ("42",))
    for n in range(6)
]


class Judge:
    """Answers each request by a rule of its text; finishes in any order, as engines do."""

    def __init__(self, rule: Callable[[str, Request], Any]) -> None:
        self.rule = rule
        self.asked: list[Request] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        self.asked = list(requests)
        for place in reversed(range(len(self.asked))):
            said = self.rule(self.asked[place].messages[0].content, self.asked[place])
            text = said if isinstance(said, str) else json.dumps({"reason": "so", **said})
            yield place, Reply(text, "stop", 1, 1, 0.0)


def answers(text: str) -> tuple[str, str]:
    found = re.search(r"Answer A: (.*)\n\nAnswer B: (.*)\n\nWhich", text)
    assert found is not None
    return found[1], found[2]


def fair(text: str, request: Request) -> dict[str, str]:
    a, b = (len(one) for one in answers(text))
    return {"verdict": "tie" if a == b else "A" if a > b else "B"}


def judged(rule: Callable[[str, Request], Any], cases: list[Case] = CASES) -> Any:
    return judge_pairs(cases, MODELS, Judge(rule), "rule")  # type: ignore[arg-type]


def test_a_fair_judge_agrees_with_itself_whatever_is_shown_first() -> None:
    votes, found = judged(fair)
    assert len(votes) == 12
    assert {vote.swapped for vote in votes if vote.row == "r0"} == {False, True}
    assert found["wins"] == {"small": 0, "big": 6}
    assert found["agreement_with_itself"] == 1.0
    assert found["first_shown"] == 0.5
    assert found["preference"]["value"] == 0.0
    assert found["preference"]["significant"] is True


def test_a_judge_that_likes_what_it_reads_first_never_decides() -> None:
    with pytest.raises(TeacherError, match="never decides: of 6 rows, 0 are ties, 6 change"):
        judged(lambda text, request: {"verdict": "A"})


def test_a_judge_of_ties_and_one_of_nonsense_never_decide() -> None:
    with pytest.raises(TeacherError, match="6 are ties"):
        judged(lambda text, request: {"verdict": "tie"})
    with pytest.raises(TeacherError, match="12 of 12 replies cannot be used"):
        judged(lambda text, request: "I would rather not say")


def test_a_judge_whose_engine_refuses_everything_is_told_why() -> None:
    class Refusing(Judge):
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            for place, _ in enumerate(requests):
                yield place, Reply("the prompt does not fit", "error", 0, 0, 0.0)

    refusing: Any = Refusing(fair)
    with pytest.raises(TeacherError, match="refuses every request: the prompt does not fit"):
        judge_pairs(CASES, MODELS, refusing, "rule")


def test_a_half_biased_judge_is_reported_as_such() -> None:
    def rule(text: str, request: Request) -> dict[str, str]:
        return {"verdict": "A"} if re.search(r"Question [0-2]", text) else fair(text, request)

    _, found = judged(rule)
    assert found["contradictions"] == 3
    assert found["wins"]["big"] == 3
    assert found["agreement_with_itself"] == 0.5
    assert found["first_shown"] == 0.75
    assert found["preference"]["value"] == pytest.approx(0.25)


def test_equal_answers_are_ties_that_are_not_asked_about() -> None:
    same = [Case(f"s{n}", "Q?", {"small": "The 42.", "big": "42"}) for n in range(2)]
    votes, found = judged(fair, [*CASES, *same])
    assert len(votes) == 12
    assert (found["rows"], found["identical"]) == (8, 2)
    assert found["preference"]["value"] == pytest.approx(1 / 8)
    with pytest.raises(InputError, match="same answer to all 2 rows"):
        judged(fair, same)


def test_requests_hold_the_reply_to_a_schema_and_show_passage_and_gold() -> None:
    judge = Judge(fair)
    case = Case("r", "When?", {"small": "", "big": "42"}, ("42 turns", "42"), "It opens at 42.")
    judge_pairs([case, *CASES], MODELS, judge, "rule")  # type: ignore[arg-type]
    request = judge.asked[0]
    assert request.schema is not None
    assert request.schema["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
    text = request.messages[0].content
    assert text.startswith(
        "Passage: It opens at 42.\n\nQuestion: When?\n\nCorrect answer: 42 turns"
    )
    assert "Answer A: (nothing)" in text
    assert "small" not in text  # the judge sees no names


def test_grades_are_asked_for_twice_and_their_agreement_is_told() -> None:
    def rule(text: str, request: Request) -> dict[str, int]:
        good = "Answer: 42" in text
        return {"grade": 5 if good else 2 if request.temperature == 0 else 3}

    grades, found = judge_grades(CASES, MODELS, Judge(rule), "rule", "5 is best.")  # type: ignore[arg-type]
    assert len(grades) == 24
    assert found["grades"]["big"]["value"] == 5.0
    assert found["grades"]["small"]["value"] == pytest.approx((3 * 5 + 3 * 2.5) / 6)
    assert found["agreement_with_itself"] == pytest.approx(9 / 12)
    with pytest.raises(TeacherError, match="none of 24 replies holds a grade"):
        judge_grades(CASES, MODELS, Judge(lambda text, request: "{}"), "rule")  # type: ignore[arg-type]


def vote(row: str, winner: str, judge: str = "human:anna", swapped: bool = False) -> Vote:
    return Vote(row=row, models=MODELS, swapped=swapped, winner=winner, judge=judge)


def test_a_persons_votes_are_summed_up_by_the_same_function() -> None:
    person = [vote("r0", "big"), vote("r1", "small", swapped=True), vote("r2", "tie")]
    found = pair_summary(person, MODELS)
    assert found["wins"] == {"small": 1, "big": 1}
    assert found["ties"] == 1
    assert found["agreement_with_itself"] is None  # nobody voted twice on a row
    assert found["first_shown"] == 0.0  # each time for what was shown second
    with pytest.raises(InputError, match="at least two rows"):
        pair_summary(person[:1], MODELS)


def test_agreement_of_a_person_and_a_model_is_cohens_kappa() -> None:
    person = [vote(f"r{n}", winner) for n, winner in enumerate(["big", "big", "small", "tie"])]
    model = [vote(f"r{n}", winner, "rule") for n, winner in enumerate(["big", "small", "small"])]
    found = agreement(person, model, MODELS)
    assert (found["rows"], found["share"]) == (3, pytest.approx(2 / 3))
    # by hand: chance = 2/3 * 1/3 (big) + 1/3 * 2/3 (small)
    assert found["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    with pytest.raises(InputError, match="no row in common"):
        agreement(person, [vote("x", "big")], MODELS)
