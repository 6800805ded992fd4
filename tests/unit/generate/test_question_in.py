"""The question is found again in a turn that was written with a passage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.generate import PromptConfig, question_in, student_turn

PROMPT = PromptConfig()
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)


@given(st.text(min_size=1), LINES)
def test_it_comes_back_from_every_turn(passage: str, question: str) -> None:
    assert question_in(PROMPT, student_turn(PROMPT, passage, question)) == question
    assert question_in(PROMPT, student_turn(PROMPT, "", question)) == question


def test_other_turns_stay_as_they_are() -> None:
    framed = PromptConfig(student="Read: {passage}\nAnswer: {question}\n")
    assert question_in(framed, "Hello.\n\nHow many?") == "Hello.\n\nHow many?"
    assert question_in(framed, student_turn(framed, "A (b) {question}", "Why?")) == "Why?"
    alone = PromptConfig(student="{question}")
    assert question_in(alone, "How many?") == "How many?"
    twice = PromptConfig(student="{question} {passage} {question}")
    assert question_in(twice, "a b a") == "a b a"
