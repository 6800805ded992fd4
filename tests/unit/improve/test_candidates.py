"""Feedback becomes rows that are worded as the student was taught, or is left out with a reason."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.generate import PromptConfig, student_turn
from potstill.improve.candidates import asked_in, gather

PROMPT = PromptConfig()
PASSAGE = "The boiler of unit 7 holds 1250 litres. Ask anna@example.org about it."
CITATION = {
    "source": "a.md",
    "pages": [2],
    "document": "d",
    "chunk": "c1",
    "start": 5,
    "end": 5 + len(PASSAGE),
    "text": PASSAGE,
}


def ask(passage: str, question: str) -> str:
    return student_turn(PROMPT, passage, question)


def row(number: int = 1, **more: Any) -> dict[str, Any]:
    question = more.pop("question", "How many litres does the boiler hold?")
    cited = more.pop("cited", True)
    content = ask(PASSAGE, question) if cited else question
    return {
        "id": f"fb-{number}",
        "time": f"2026-01-0{number}",
        "response": "chatcmpl-1",
        "thumb": None,
        "correction": None,
        "messages": [{"role": "user", "content": content}],
        "answer": "12",
        "citations": [CITATION] if cited else [],
        "state": "accepted",
        "reviewed": f"2026-02-0{number}",
        "right_answer": None,
    } | more


def test_a_correction_becomes_a_row_about_its_passage() -> None:
    found = gather([row(correction="1250 litres")], ask)
    (one,) = found.candidates
    made = one.example
    assert made.question == "How many litres does the boiler hold?"
    assert made.turns[0].content == ask(PASSAGE, made.question)
    assert (made.turns[1].content, made.answers) == ("1250 litres", ("1250 litres",))
    assert (made.provenance.chunk, made.provenance.teacher) == ("c1", "")
    assert made.provenance.span is not None
    assert PASSAGE[made.provenance.span.start : made.provenance.span.end] == "1250 litres"
    assert one.passage is not None
    assert (one.passage.text, one.passage.pages) == (PASSAGE, (2,))


def test_what_cannot_be_used_has_a_reason() -> None:
    rows = [
        row(1, state="new", thumb="up"),
        row(2, thumb="down"),
        row(3, thumb="up", response="cmpl-9"),
        row(4, thumb="up", messages=[{"role": "assistant", "content": "Hello."}]),
        row(5, thumb="up", question="What does it say?"),
    ]
    found = gather(rows, ask, spans=True)
    assert found.candidates == ()
    assert found.left == {
        "not_accepted": 1,
        "no_right_answer": 1,
        "plain_completion": 1,
        "no_question": 1,
        "not_in_passage": 1,  # 12 is not in 1250
    }


def test_of_one_question_the_last_review_counts() -> None:
    rows = [row(3, correction="1250 litres"), row(2, correction="12 litres")]
    found = gather(rows, ask)
    assert [one.feedback for one in found.candidates] == ["fb-3"]
    assert found.left == {"answered_again": 1}


def test_personal_data_is_masked_in_passage_question_and_answer() -> None:
    asked = row(question="Is anna@example.org right?", correction="Ask anna@example.org")
    (one,) = gather([asked], ask, mask=True).candidates
    assert one.passage is not None
    assert "anna@" not in one.example.model_dump_json() + one.passage.model_dump_json()
    assert one.example.provenance.chunk == one.passage.id != "c1"
    assert one.passage.text in one.example.turns[0].content


def test_a_conversation_keeps_its_turns_and_a_refusal_its_kind() -> None:
    turns = [
        {"role": "user", "content": "What is unit 7?"},
        {"role": "assistant", "content": "A boiler."},
        {"role": "user", "content": "How large is it?"},
    ]
    rows = [
        row(1, messages=turns, citations=[], correction="1250 litres"),
        row(2, correction="The passage does not say!"),
    ]
    found = gather(rows, ask, refusal="The passage does not say.")
    kinds = {one.feedback: one.example.kind for one in found.candidates}
    assert kinds == {"fb-1": "conversation", "fb-2": "refusal"}
    first = next(one for one in found.candidates if one.feedback == "fb-1")
    assert [turn.role for turn in first.example.turns] == ["user", "assistant"] * 2
    assert first.example.question == "How large is it?"


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_the_question_is_found_again_in_what_was_served(passage: str, question: str) -> None:
    if passage and question.strip():
        assert asked_in(ask(passage, question), passage, ask) == question.strip()
    assert asked_in("laid out in another way", passage, ask) == "laid out in another way"


def test_parts_are_drawn_by_the_question_and_stay() -> None:
    rows = [row(question=f"How many litres in unit {n}?", thumb="up") | {"id": f"fb-{n}"}
            for n in range(400)]  # fmt: skip
    many = gather(rows, ask).candidates
    parts = [one.part(17, 0.3, 0.1) for one in many]
    assert 0.22 < parts.count("test") / 400 < 0.38
    assert 0.05 < parts.count("validation") / 400 < 0.16
    few = gather(rows[:40], ask).candidates
    known = dict(zip((one.feedback for one in many), parts, strict=True))
    assert all(one.part(17, 0.3, 0.1) == known[one.feedback] for one in few)
