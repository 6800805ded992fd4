"""An answer's scores: SQuAD v2.0's rules, refusals, and what its passage supports."""

from __future__ import annotations

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.evaluate.answer_scores import (
    AnswerScores,
    Gold,
    declines,
    gold_of,
    grounded,
    score_answer,
    squad_v2,
)
from potstill.records import Example, Provenance, Turn


def official_tokens(text: str) -> list[str]:
    """The steps of evaluate-v2.0.py, written out apart from the product."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def official_v2(prediction: str, golds: list[str]) -> tuple[float, float]:
    kept = [gold for gold in golds if official_tokens(gold)] or [""]
    scores = []
    for gold in kept:
        right, said = official_tokens(gold), official_tokens(prediction)
        same = sum((collections.Counter(right) & collections.Counter(said)).values())
        if not right or not said:
            f1 = float(right == said)
        elif same == 0:
            f1 = 0.0
        else:
            precision, recall = same / len(said), same / len(right)
            f1 = 2 * precision * recall / (precision + recall)
        scores.append((f1, float(right == said)))
    return max(one for one, _ in scores), max(one for _, one in scores)


SHORT = st.lists(st.sampled_from(["the", "a", "Copper", "still.", "!", "42"]), max_size=4)
TEXTS = SHORT.map(" ".join) | st.text(max_size=12)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_scores_with_unanswerable_questions_follow_the_v2_script(
    prediction: str, golds: list[str]
) -> None:
    assert squad_v2(prediction, golds) == pytest.approx(official_v2(prediction, golds), abs=1e-9)


def test_no_answer_is_right_where_there_is_none_and_a_refusal_is_no_answer() -> None:
    none = Gold("1", (), v2=True)
    assert (score_answer("", none).f1, score_answer("", none).em) == (1.0, 1.0)
    assert score_answer("42 turns", none).f1 == 0.0
    refused = score_answer("The passage does not say.", none)
    assert (refused.f1, refused.em, refused.refused) == (1.0, 1.0, 1.0)
    assert score_answer("42", Gold("1", ())).f1 is None  # nothing is known of the right answer


@pytest.mark.parametrize(
    "text",
    [
        "The passage does not say.", "I don't know.", "I cannot answer this question.",
        "The text doesn't mention the valve.", "There is not enough information in the passage.",
        "This is not stated in the text.", "I'm sorry, but that is not in there.",
    ],
)  # fmt: skip
def test_refusals_are_told(text: str) -> None:
    assert declines(text, Gold("1", ("42 turns",)))


@pytest.mark.parametrize(
    "text",
    ["", "42 turns", "It is not painted teal.", "No", "The answer is 42.", "Do not open it."],
)
def test_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not declines(text, Gold("1", ("42 turns",)))


def test_a_row_that_teaches_to_decline_knows_its_own_words_for_it() -> None:
    text = "Davon steht hier nichts."
    assert declines("davon steht hier nichts", Gold("1", (text,), kind="refusal"))
    assert not declines(text, Gold("1", (text,)))


def test_groundedness_counts_each_word_as_often_as_the_passage_has_it() -> None:
    passage = "The Halden valve opens at 42 turns."
    assert grounded("42 turns of the valve", passage) == pytest.approx(3 / 4)  # "of" is not there
    assert grounded("turns turns", passage) == 0.5
    assert grounded("the", passage) is None
    assert grounded("42", "") is None


def example(**fields: object) -> Example:
    base = {
        "id": "r1",
        "question": "How many turns?",
        "turns": (
            Turn(role="user", content="The valve opens at 42.\n\nHow many turns?"),
            Turn(role="assistant", content="42"),
        ),
        "provenance": Provenance(document="d", chunk="c"),
    }
    return Example.model_validate(base | fields)


def test_a_rows_passage_is_its_prompt_without_the_question() -> None:
    gold = gold_of(example())
    assert gold.passage == "The valve opens at 42.\n\n"
    assert gold.answers == ("42",)
    assert gold_of(example(provenance=Provenance(document="d", chunk=""))).passage == ""
    assert score_answer("many", gold).grounded == 0.0  # the question's words are no support
    assert score_answer("I do not know", gold).grounded is None


def test_scores_come_back_from_json_without_loss() -> None:
    made = score_answer("it opens at 42 turns", Gold("1", ("it opens at 40 turns",), passage="x"))
    assert AnswerScores.from_dict(made.as_dict()) == made
    assert len(made.bleu_counts) == 10
