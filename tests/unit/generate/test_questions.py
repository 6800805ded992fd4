"""The form a reply must have, and every reason for which one is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.generate.config import GenerateConfig, PromptConfig, Shot
from potstill.generate.focus import Task, plan
from potstill.generate.prompts import student_turn, teacher_turns
from potstill.generate.questions import (
    UnusableError,
    find_span,
    question_words,
    schema,
    to_example,
)
from potstill.records import Chunk

TEXT = (
    "1. The lamp\n\nThe lamp of Skerry Point burns 46 litres of\nthornoil in eleven nights, and "
    "the keeper trims it.\n\nPost | Holder\nChief stoker | Bram Oxley"
)
CHUNK = Chunk(id="c", document="d", source="h.md", start=0, end=len(TEXT), tokens=40, text=TEXT)
PROMPT = PromptConfig()
LAMP, KEEPER, *_ = plan(TEXT, limit=9, min_words=5, max_answer_words=8)
CELL = plan(TEXT, limit=9, min_words=5, max_answer_words=8)[-1]


def pattern(task: Task, in_place: bool, field: str = "question") -> str:
    return str(schema(PROMPT, task, in_place)["properties"][field]["pattern"])


def reply(**fields: Any) -> str:
    good = {
        "question": "How many litres does the lamp of Skerry Point burn?",
        "reasoning": "The lamp burns 46 litres.",
        "answer": "46 litres",
    }
    return json.dumps({**good, **fields})


def refused(text: str, cut_off: bool = False) -> str:
    with pytest.raises(UnusableError) as caught:
        to_example(text, cut_off, CHUNK, LAMP, PROMPT, "teacher")
    return caught.value.reason


def test_a_good_reply_becomes_a_row_that_knows_where_its_answer_stands() -> None:
    example = to_example(reply(), False, CHUNK, LAMP, PROMPT, "teacher")
    assert example.answers == ("46 litres",)
    span = example.provenance.span
    assert span is not None
    assert TEXT[span.start : span.end] == "46 litres"
    assert example.provenance.prompt == "extractive-qa@1"
    user, assistant = example.turns
    assert user.content == student_turn(PROMPT, TEXT, example.question)
    assert TEXT in user.content
    assert assistant.content == "46 litres"
    again = to_example(reply(), False, CHUNK, LAMP, PROMPT, "teacher")
    assert again == example


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "invalid_reply"),
        ('{"question": "Who?"}', "invalid_reply"),
        (reply(extra=1), "invalid_reply"),
        (reply(question="The lamp burns oil."), "not_a_question"),
        (reply(question="How?"), "not_a_question"),
        (reply(answer=" . "), "empty_answer"),
        (reply(question="Does the lamp burn 46 litres of thornoil?"), "question_contains_answer"),
        (reply(question="How many passengers does the Blue Marlin carry?"), "copied_example"),
        (reply(question="How many lamp lamp burns thornoil?"), "repetition"),
        (reply(question="How many people are there?"), "off_topic"),
        (reply(question="How much petrol does the lamp burn?"), "foreign_words"),
        (reply(reasoning="It is written there."), "reasoning_disagrees"),
        (
            reply(answer="47 litres", reasoning="The lamp burns 47 litres."),
            "answer_not_in_passage",
        ),
    ],
)
def test_each_fault_has_its_own_reason(text: str, reason: str) -> None:
    assert refused(text) == reason


def test_a_reply_that_was_cut_off_is_refused_even_if_it_parses() -> None:
    assert refused(reply(), cut_off=True) == "cut_off"


def test_an_in_place_question_is_the_sentence_with_a_question_word() -> None:
    form = pattern(LAMP, in_place=True)
    start = "The lamp of Skerry Point burns how many litres"
    assert re.fullmatch(form, f"{start} of thornoil in eleven nights?")
    assert re.fullmatch(form, f"{start} of thornoil in eleven nights, and the keeper trims it?")
    assert re.fullmatch(form, f"{start}?")
    assert not re.fullmatch(form, "The lamp of Skerry Point burns how many nights?")
    reason = pattern(LAMP, in_place=True, field="reasoning")
    assert re.fullmatch(
        reason, "The lamp of Skerry Point burns 46 litres of thornoil in eleven nights."
    )


def test_a_free_question_starts_with_an_opening_of_its_kind_of_answer() -> None:
    form = pattern(LAMP, in_place=False)
    assert re.fullmatch(form, "How many litres does the lamp burn?")
    assert not re.fullmatch(form, "Who burns the lamp of the point?")
    assert not re.fullmatch(form, 'How many "litres" does the lamp burn?')


def test_a_cells_question_names_its_row_and_column() -> None:
    form = pattern(CELL, in_place=False)
    assert CELL.answer == "Bram Oxley"
    assert re.fullmatch(form, "Who is the holder of the chief stoker?")
    assert re.fullmatch(form, "Which holder does the Chief stoker have?")
    assert not re.fullmatch(form, "Who is the holder of the grader?")


def test_signs_of_a_sentence_are_no_commands_of_the_pattern() -> None:
    text = "The valve (type A+B) opens at 3.5 bar [gauge] or 2*2 turns."
    tasks = plan(text, limit=9, min_words=3, max_answer_words=8)
    assert len(tasks) >= 2
    for task in tasks:
        form = pattern(task, in_place=True)
        for asked in question_words(task):
            assert re.fullmatch(form, text[:-1].replace(task.answer, asked) + "?")
        assert not re.fullmatch(form, text.replace("A+B", "AAB"))


def test_no_form_lets_a_quotation_mark_end_the_json_string() -> None:
    text = 'The word "anchor" was last used on 3 August 2022, when the \\ Heron fell.'
    (task, *_) = plan(text, limit=9, min_words=3, max_answer_words=8)
    form = pattern(task, in_place=True)
    assert re.fullmatch(form, "The word anchor was last used on which date?")
    assert not re.fullmatch(form, "The word anchor was last used on which date,?")
    assert '"' not in form + pattern(task, in_place=True, field="reasoning")


def test_the_span_is_found_inside_its_sentence_across_line_breaks() -> None:
    text = "46 litres stand here.\n\nThe lamp burns 46\nlitres a week."
    span = find_span(text, "The lamp burns 46 litres a week.", "46 litres")
    assert span is not None
    assert text[span.start : span.end] == "46\nlitres"
    assert find_span(text, "The lamp burns 46 litres a week.", "47 litres") is None
    assert find_span(text, "Another sentence.", "46 litres") is None


def test_prompts_show_worked_examples_and_never_fill_in_the_passages_own_braces() -> None:
    turns = teacher_turns(PROMPT, "About {answer} and {question}.", "About {answer}.", "braces")
    assert [turn.role for turn in turns] == ["system", *["user", "assistant"] * 4, "user"]
    assert json.loads(turns[2].content)["answer"] == PROMPT.shots[0].answer
    assert "About {answer} and {question}." in turns[-1].content
    assert turns[-1].content.endswith("Answer: braces")
    assert student_turn(PROMPT, "{question}", "Why?").count("{question}") == 1
    assert student_turn(PROMPT, "", "Why?") == "Why?"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ask": "Sentence: {focus}"}, "{answer}"),
        ({"ask": "{focus} {answer} {page}"}, "{page}"),
        ({"student": "Answer it."}, "{question}"),
        ({"openings": {}}, "openings"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_prompts_that_cannot_work_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        PromptConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"focus": "Not there."}, {"answer": "absent"}, {"reasoning": "No answer in here."}],
)
def test_worked_examples_that_break_the_rules_are_refused(fields: dict[str, str]) -> None:
    good = {
        "passage": "A b c.",
        "focus": "A b c.",
        "question": "A?",
        "reasoning": "b",
        "answer": "b",
    }
    Shot(**good)
    with pytest.raises(ValidationError, match="must"):
        Shot(**{**good, **fields})


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="attempts"):
        GenerateConfig(temperature=0)
    with pytest.raises(ValidationError, match="context_tokens"):
        GenerateConfig(max_tokens=300, context_tokens=300)
    assert GenerateConfig(temperature=0, attempts=1).attempts == 1
