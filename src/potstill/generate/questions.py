"""One question-answer pair: the form its reply must have, and whether the reply is any good.

In: a chunk, a task, a reply's text. Out: a JSON Schema; an Example, or a reason why not.
Pure functions. Knows no engine and no file.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.generate.config import PromptConfig
from potstill.generate.focus import Task
from potstill.generate.prompts import student_turn
from potstill.generate.unusable import UnusableError
from potstill.generate.words import content_words, foreign_words, normal, repeats
from potstill.records import Chunk, Example, Provenance, Span, Turn, short_id

QUESTION_CHARACTERS = (10, 140)  # fewest and most after the opening
REASONING_CHARACTERS = 140
CLAUSE = re.compile(
    r"(?=, )|(?<!,)(?= and | because | so that | which | when | if | while | before | after )"
)
DAYS = re.compile(r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b")
SHORTEST_BEGINNING = 4  # words before the answer that make sense without what follows it
MONTHS = re.compile(
    r"January|February|March|April|May|June|July|August|September|October|November|December"
)


class Pair(BaseModel):
    """A reply's fields, in the order in which the teacher thinks: question, reason, answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    reasoning: str
    answer: str


def schema(prompt: PromptConfig, task: Task, in_place: bool) -> dict[str, Any]:
    """The JSON Schema of a reply: the form of the question, a short reason, the answer."""
    return {
        "type": "object",
        "properties": {
            "question": {"type": "string", "pattern": question_pattern(prompt, task, in_place)},
            "reasoning": reasoning_schema(task, in_place),
            "answer": {"type": "string", "enum": [task.answer]},
        },
        "required": ["question", "reasoning", "answer"],
        "additionalProperties": False,
    }


def question_pattern(prompt: PromptConfig, task: Task, in_place: bool) -> str:
    """The regular expression of the question.

    Of a table cell, only the question for its row and column has it as its answer. Elsewhere
    either the sentence itself with a question word in the answer's place, or a free question that
    starts with one of the prompt's openings.
    """
    if task.column:
        return cell_pattern(task)
    if in_place:
        return in_place_pattern(task)
    openings = prompt.openings.get(task.kind) or sum(prompt.openings.values(), ())
    low, high = QUESTION_CHARACTERS
    return rf'^({"|".join(map(escape, openings))}) [^?"\\\n]{{{low},{high}}}\?$'


def cell_pattern(task: Task) -> str:
    """What is the radio name of the grader? Or: Which radio name does the grader have?"""
    column = escape(task.column[:1].lower() + task.column[1:])
    row = f"(the )?{escape(task.row)}"
    if task.row[1:].islower():  # words, not a name: in the middle of a sentence without a capital
        row = f"(the {escape(task.row.lower())}|{row})"
    who = "|Who" if task.kind == "name" else ""
    return (
        rf"^((What|Which{who}) is the {column} of {row}|"
        rf"(What|Which) {column} (does {row} have|has {row}))\?$"
    )


def in_place_pattern(task: Task) -> str:
    """The sentence with the answer asked for where it stands: "The lamp burns for how many hours?"

    What follows the answer may be left out from any clause border on.
    """
    before, _, _ = task.focus.partition(task.answer)
    asking = question_words(task)
    if not before:
        asking = tuple(words[:1].upper() + words[1:] for words in asking)
    return rf"^{escape(before)}({'|'.join(map(escape, asking))}){_rest(task)}\?$"


def reasoning_schema(task: Task, in_place: bool) -> dict[str, Any]:
    """A free sentence, or, where the question's form is fixed, the words that hold the answer."""
    if task.column:
        column = escape(task.column[:1].lower() + task.column[1:])
        pattern = rf"^The {column} of (the )?{escape(task.row)} is {escape(task.answer)}\.$"
    elif in_place:
        before, _, _ = task.focus.partition(task.answer)
        pattern = rf"^{escape(before + task.answer)}{_rest(task)}\.$"
    else:
        return {"type": "string", "minLength": 1, "maxLength": REASONING_CHARACTERS}
    return {"type": "string", "pattern": pattern}


def _rest(task: Task) -> str:
    """What follows the answer, of which only what makes a sentence whole must be there."""
    before, _, after = task.focus.partition(task.answer)
    clauses = [part for part in CLAUSE.split(after.rstrip(' .!?")\u201d')) if part]
    needed = len(before.split()) < SHORTEST_BEGINNING
    rest = ""
    for place, clause in reversed(list(enumerate(clauses))):
        rest = f"{escape(clause)}{rest}"
        if place > 0 or not needed:
            rest = f"({rest})?"
    return rest


def question_words(task: Task) -> tuple[str, ...]:
    """What may stand in an answer's place."""
    figure, _, unit = task.answer.partition(" ")
    if MONTHS.search(task.answer):
        return ("which date", "what day") if task.kind == "number" else ("which month",)
    if DAYS.search(task.answer):
        return ("which day", "what day")
    if task.kind == "name":
        return ("who", "what", "which place", "which one")
    if task.kind == "other":
        return ("what",)
    if not unit or any(sign.isalpha() for sign in figure if figure.isupper()):
        return ("what", "how many", "which number")
    if any(sign.isdigit() for sign in unit):
        return ("how long", "how much", "what")
    return (f"how many {unit}",)


def escape(text: str) -> str:
    """Text as a regular expression for it; JSON Schema engines refuse needless escapes.

    Quotation marks and backslashes are left out: llama.cpp would write them into the JSON string
    as they are, and end it there.
    """
    return re.sub(r"([.^$*+?()\[\]{}|/])", r"\\\1", re.sub(r'["\\]', "", text))


def to_example(
    text: str, cut_off: bool, chunk: Chunk, task: Task, prompt: PromptConfig, teacher: str
) -> Example:
    """The row that a reply makes. Errors: UnusableError says why it makes none."""
    if cut_off:
        raise UnusableError("cut_off", "the reply was longer than max_tokens")
    try:
        pair = Pair.model_validate_json(text)
    except ValidationError as error:
        raise UnusableError("invalid_reply", error.errors()[0]["msg"]) from error
    question, reasoning, answer = (
        " ".join(part.split()) for part in (pair.question, pair.reasoning, pair.answer)
    )
    check_pair(question, reasoning, answer, task, chunk, prompt)
    span = find_span(chunk.text, task.focus, answer)
    if span is None:
        raise UnusableError("answer_not_in_passage", answer)
    asked = student_turn(prompt, chunk.text, question)
    return Example(
        id=short_id(chunk.id, str(task.index), question, answer),
        kind="qa",
        turns=(Turn(role="user", content=asked), Turn(role="assistant", content=answer)),
        question=question,
        reasoning=reasoning,
        answers=(answer,),
        provenance=Provenance(
            document=chunk.document,
            chunk=chunk.id,
            span=span,
            teacher=teacher,
            prompt=prompt.label,
        ),
    )


def check_pair(
    question: str, reasoning: str, answer: str, task: Task, chunk: Chunk, prompt: PromptConfig
) -> None:
    """What makes a pair worthless, cheapest first. Errors: UnusableError."""
    if not question.endswith("?") or len(question) < 10:
        raise UnusableError("not_a_question", question)
    if not normal(answer):
        raise UnusableError("empty_answer")
    if f" {normal(answer)} " in f" {normal(question)} ":
        raise UnusableError("question_contains_answer", f"{question} / {answer}")
    if normal(question) in {normal(shot.question) for shot in prompt.shots}:
        raise UnusableError("copied_example", question)
    if repeats(question) and not repeats(task.shown):
        raise UnusableError("repetition", question)
    asked, about = content_words(question), content_words(task.shown) - content_words(answer)
    if not asked & about or len(asked & about) < min(2, len(asked), len(about)):
        raise UnusableError("off_topic", f"{question} / {task.shown}")
    if prompt.vocabulary and (foreign := foreign_words(question, chunk.text, prompt.vocabulary)):
        raise UnusableError("foreign_words", f"{question} / {', '.join(foreign)}")
    if f" {normal(answer)} " not in f" {normal(reasoning)} ":
        raise UnusableError("reasoning_disagrees", f"{question} / {answer} / {reasoning}")


def find_span(text: str, focus: str, answer: str) -> Span | None:
    """Where the answer stands in the chunk: inside its sentence, whatever the line breaks."""
    sentence = re.search(_loose(focus), text)
    found = sentence and re.search(_loose(answer), sentence[0])
    if not sentence or not found:
        return None
    return Span(start=sentence.start() + found.start(), end=sentence.start() + found.end())


def _loose(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in text.split())
