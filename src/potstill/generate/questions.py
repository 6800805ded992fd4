"""One question-answer pair: the form its reply must have, and whether the reply is any good.

In: a chunk, a task, a reply's text. Out: a JSON Schema; an Example, or a reason why not.
Pure functions. Knows no engine and no file.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.generate.config import PromptConfig
from potstill.generate.focus import LIGHT, Task
from potstill.generate.prompts import student_turn
from potstill.records import Chunk, Example, Provenance, Span, Turn, short_id

WORDS = re.compile(r"[^\W_]+(?:['\u2019.,/-][^\W_]+)*")
QUESTION_WORDS = (3, 18)  # fewest and most words after the opening
REASONING_CHARACTERS = 160


class Pair(BaseModel):
    """A reply's fields, in the order in which the teacher thinks: question, reason, answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    reasoning: str
    answer: str


class UnusableError(Exception):
    """Why a reply is not taken: `reason` for counting, `detail` for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def schema(prompt: PromptConfig, task: Task) -> dict[str, Any]:
    """The JSON Schema of a reply: the question's first words, the words it may use, and the spans
    that may answer it."""
    return {
        "type": "object",
        "properties": {
            "question": {"type": "string", "pattern": question_pattern(prompt, task)},
            "reasoning": {"type": "string", "minLength": 1, "maxLength": REASONING_CHARACTERS},
            "answer": {"type": "string", "enum": [task.answer]},
        },
        "required": ["question", "reasoning", "answer"],
        "additionalProperties": False,
    }


def question_pattern(prompt: PromptConfig, task: Task) -> str:
    """A regular expression: an opening, then words of the sentence and of the vocabulary.

    Of a table cell only the question for its row and column has it as its answer.
    """
    if task.column:
        column = escape(task.column[:1].lower() + task.column[1:])
        row = escape(task.row)
        return (
            rf"^((What|Who|Which) is the {column} of (the )?{row}|"
            rf"(What|Which) {column} (does|has) (the )?{row}( have)?)\?$"
        )
    openings = prompt.openings.get(task.kind) or sum(prompt.openings.values(), ())
    opening = "|".join(re.escape(one).replace("\\ ", " ") for one in openings)
    low, high = QUESTION_WORDS
    if not prompt.vocabulary:
        return rf'^({opening}) [^?"\\\n]{{{4 * low},{8 * high}}}\?$'
    known = dict.fromkeys(word for found in WORDS.findall(task.shown) for word in forms(found))
    known |= dict.fromkeys(prompt.vocabulary)
    for word in telling_words(task):
        known.pop(word, None)
    words = "|".join(escape(word) for word in known)
    return rf"^({opening})( ({words})){{{low},{high}}}\?$"


def telling_words(task: Task) -> set[str]:
    """Words that would give the answer away: its names and figures, not the units it counts."""
    rest = task.shown.replace(task.answer, " ")
    kept = set(WORDS.findall(rest))
    inside = WORDS.findall(task.answer)
    if task.kind == "number":
        inside = [word for word in inside if not word.isalpha() or word[:1].isupper()]
    return {form for word in inside if word not in kept for form in forms(word)}


def forms(word: str) -> list[str]:
    """A word and what it may become in a question: carries -> carry, stored -> store.

    Forms that are no words do no harm: no teacher finds them likely.
    """
    found = [word]
    if word.islower():
        for ending, others in ENDINGS:
            if word.endswith(ending) and len(word) > len(ending) + 1:
                found += [word[: -len(ending)] + other for other in others]
    elif word[1:].islower():
        found.append(word.lower())
    return found


ENDINGS = (("ies", ("y",)), ("es", ("", "e")), ("s", ("",)), ("ed", ("", "e")), ("ing", ("", "e")))


def escape(word: str) -> str:
    """Escape what a regular expression would read; JSON Schema engines refuse needless escapes."""
    return re.sub(r"([.^$*+?()\[\]{}|\\/])", r"\\\1", word)


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
    check_pair(question, reasoning, answer, task, prompt)
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
    question: str, reasoning: str, answer: str, task: Task, prompt: PromptConfig
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
    if repeats(question):
        raise UnusableError("repetition", question)
    asked_about = content_words(task.shown) - content_words(answer)
    if len(content_words(question) & asked_about) < min(2, len(asked_about)):
        raise UnusableError("off_topic", f"{question} / {task.shown}")
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


def normal(text: str) -> str:
    """Lower case, compatibility forms folded, only words and figures, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(WORDS.findall(folded))


def content_words(text: str) -> set[str]:
    """The words that carry meaning, in their simplest form."""
    return {min(forms(word), key=len) for word in normal(text).split() if word not in LIGHT}


def repeats(text: str) -> bool:
    """The same three words twice, or a word twice in a row."""
    words = normal(text).split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(threes)) < len(threes) or any(one == two for one, two in pairwise(words))
