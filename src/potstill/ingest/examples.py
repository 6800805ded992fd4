"""A ready-made row becomes an `Example`, and its passage a `Chunk`.

In: a raw row and the columns it has. Out: the example and its passage, or `UnusableError` with
the reason. Words are taken as they stand; nothing is guessed where a guess could teach a wrong
answer. Knows no file format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.core.blanks import BLANK
from potstill.ingest.columns import Columns
from potstill.ingest.content import UnusableError
from potstill.ingest.options import Choice, choices_of, chosen, listed
from potstill.ingest.row_files import RawRow
from potstill.ingest.rows_config import RowsConfig
from potstill.records import Example, Provenance, Span, Turn, short_id

PROMPT = "rows@1"
LONGEST = 1_000_000
INLINE = re.compile(r"(?:^|[\s(])a[.):]\s.*?[\s(]b[.):]\s", re.IGNORECASE | re.DOTALL)
"""Choices that stand in the question itself: A) ... B) ..."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Answers:
    """What a row gives as its answer: texts, and where they stand in the passage if it says so."""

    texts: tuple[str, ...]
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row that can be used; `passage` is empty where it has none."""

    example: Example
    passage: str


def row_of(raw: RawRow, columns: Columns, config: RowsConfig, identity: str) -> Row:
    """`identity`: of the file. Errors: UnusableError with its reason."""
    fields = raw.fields
    if raw.problem is not None:
        raise raw.problem
    if columns.messages and fields.get(columns.messages) not in (None, "", []):
        return _conversation(raw, columns, identity)
    if not (columns.question and columns.answer):
        raise UnusableError("empty_messages", f"the column {columns.messages} is empty")
    asked = _text(fields, columns.question)
    if addition := _text(fields, columns.addition):
        asked = f"{asked}\n\n{addition}"
    if not asked:
        raise UnusableError("empty_question", f"the column {columns.question} is empty")
    passage = _text(fields, columns.context, strip=False)
    passage = passage if passage.strip() else ""
    answers = _answers(fields.get(columns.answer))
    options = choices_of([fields.get(name) for name in columns.options])
    refused = _refused(fields, columns, answers, passage)
    if refused:
        answers = Answers((config.refusal,))
    elif not any(answers.texts):
        raise UnusableError("empty_answer", f"the column {columns.answer} is empty")
    elif options:
        right = chosen(fields.get(columns.answer), answers.texts[0], options, config.first_option)
        answers = Answers((right,))
    prompt = config.prompt
    shown = _filled(prompt.choices, question=asked, options=listed(options)) if options else asked
    words = prompt.passage if passage else prompt.question
    example = Example(
        id=_identity(raw, columns, identity),
        kind="refusal" if refused else _kind(asked, options),
        turns=(
            Turn(role="user", content=_filled(words, passage=passage, question=shown)),
            Turn(role="assistant", content=answers.texts[0]),
        ),
        question=asked,
        reasoning=_text(fields, columns.reasoning),
        answers=answers.texts,
        options=tuple(one.text for one in options if one.text),
        label=_text(fields, columns.label),
        provenance=Provenance(
            document=_document(fields, columns, identity),
            chunk=passage_id(identity, passage) if passage else "",
            span=None if refused or not passage else _span(answers, passage),
            prompt=PROMPT,
        ),
    )
    return Row(example, passage)


def passage_id(identity: str, passage: str) -> str:
    """The same passage in a file is one chunk, however many rows ask about it."""
    return short_id("passage", identity, passage)


def _filled(template: str, **words: str) -> str:
    """Not str.format: a passage may hold braces, and so may a template that shows code."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), template)


def _text(fields: Mapping[str, Any], name: str, strip: bool = True) -> str:
    """A cell as text. Errors: UnusableError for a list, for too much, for broken characters."""
    value = fields.get(name) if name else None
    if value is None or value != value:  # what pandas writes where there is nothing is not a number
        return ""
    if not isinstance(value, str | int | float):
        raise UnusableError("not_text", f"the column {name} holds no text")
    text = str(value)
    _check(text, name)
    return text.strip() if strip else text


def _check(text: str, name: str) -> None:
    if len(text) > LONGEST:
        raise UnusableError("too_long", f"the column {name} holds {len(text):,} characters")
    if SURROGATE.search(text):
        raise UnusableError("bad_encoding", f"the column {name} holds bytes that are no text")


def _answers(value: Any) -> Answers:
    """Texts of an answer in any of its usual shapes."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = value  # an answer may begin with a bracket
        value = found if isinstance(found, list | dict) else value
    if isinstance(value, dict):
        if "text" in value:  # SQuAD's columns
            starts = value.get("answer_start")
            return _gathered(_as_list(value["text"]), _as_list(starts))
        if "value" in value:  # TriviaQA's
            return _gathered([value["value"], *_as_list(value.get("aliases"))], [])
        raise UnusableError("not_text", "the answer is an object without text or value")
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        texts = [one.get("text") for one in value]
        return _gathered(texts, [one.get("answer_start") for one in value])
    return _gathered(_as_list(value), [])


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _gathered(values: Iterable[Any], starts: list[Any]) -> Answers:
    """Each answer once, in order, with its place where all have one."""
    found: dict[str, int] = {}
    places = starts if all(isinstance(one, int) for one in starts) else []
    for number, value in enumerate(values):
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value != value:
            continue
        if not isinstance(value, str | int | float):
            raise UnusableError("not_text", "the answer is neither text nor a list of texts")
        text = str(value)
        _check(text, "answer")
        if text.strip():
            place = places[number] if number < len(places) else -1
            found.setdefault(text.strip(), place + len(text) - len(text.lstrip()))
    return Answers(tuple(found), tuple(found.values()) if places else ())


def _refused(fields: Mapping[str, Any], columns: Columns, answers: Answers, passage: str) -> bool:
    """Whether the data says that there is no answer: by a mark, or as SQuAD 2.0's columns do."""
    mark = fields.get(columns.impossible) if columns.impossible else None
    if mark is not None and mark != "":
        return str(mark).strip().lower() in ("true", "1", "yes")
    value = fields.get(columns.answer)
    no_texts = isinstance(value, dict) and value.get("text") == [] and "answer_start" in value
    return bool(passage) and no_texts and not answers.texts


def _span(answers: Answers, passage: str) -> Span | None:
    """Where the taught answer stands: as the data says if that is true, else where it is found."""
    text = answers.texts[0]
    start = answers.starts[0] if answers.starts else -1
    if start < 0 or passage[start : start + len(text)] != text:
        start = passage.find(text)
        if start < 0 or passage.find(text, start + 1) >= 0:
            return None
    return Span(start=start, end=start + len(text))


def _kind(question: str, options: tuple[Choice, ...]) -> str:
    if options or INLINE.search(question):
        return "multiple_choice"
    return "fill_in_the_blank" if BLANK.search(question) else "qa"


def _document(fields: Mapping[str, Any], columns: Columns, identity: str) -> str:
    """The file's identity, or the one of the document within it that the row names."""
    name = _text(fields, columns.document)
    return short_id("document", identity, name) if name else identity


def _identity(raw: RawRow, columns: Columns, identity: str) -> str:
    if not columns.id:
        return short_id("row", identity, str(raw.number))
    name = _text(raw.fields, columns.id)
    if not name:
        raise UnusableError("empty_id", f"the column {columns.id} is empty")
    return short_id("named row", identity, name)


def _conversation(raw: RawRow, columns: Columns, identity: str) -> Row:
    """A row of messages; the last one must be the assistant's."""
    value = raw.fields[columns.messages]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    turns = tuple(_turn(one) for one in value) if isinstance(value, list) else ()
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    alternate = all(role == ("user", "assistant")[place % 2] for place, role in enumerate(spoken))
    if len(spoken) < 2 or not alternate or spoken[-1] != "assistant":
        raise UnusableError(
            "bad_messages",
            "messages must be a list of role and content, user and assistant in turn, the last "
            "one the assistant's",
        )
    example = Example(
        id=_identity(raw, columns, identity),
        kind="conversation" if len(spoken) > 2 else "qa",
        turns=turns,
        question=turns[-2].content,
        answers=(turns[-1].content,),
        label=_text(raw.fields, columns.label),
        provenance=Provenance(
            document=_document(raw.fields, columns, identity), chunk="", prompt="messages"
        ),
    )
    return Row(example, "")


def _turn(message: Any) -> Turn:
    """A message with role and content, or with ShareGPT's from and value."""
    if isinstance(message, dict):
        role = str(message.get("role", message.get("from", ""))).lower()
        content = message.get("content", message.get("value"))
        role = ROLES.get(role, role)
        if role in ("system", "user", "assistant") and isinstance(content, str) and content.strip():
            _check(content, "messages")
            return Turn.model_validate({"role": role, "content": content.strip()})
    raise UnusableError("bad_messages", "a message lacks its role or its content")
