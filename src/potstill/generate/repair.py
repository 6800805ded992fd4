"""A teacher's reply as typed rows, whatever came around or instead of clean JSON.

In: the reply's text, whether it was cut off, the shape that was asked for. Out: the rows that are
whole, and what was wrong with the others. Fences, prose, thinking aloud, missing or single quotes,
trailing commas, comments, Python's words, several objects one after another, text inside text,
other names for the fields, figures for texts, an end that is missing: json-repair (MIT) mends the
signs, this file finds where the JSON is and fits it to the shape; pydantic has the last word.
A row that was cut off in the middle is never completed by guessing.
Knows no kind of row, no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.core.extras import require
from potstill.generate.unusable import UnusableError

THINKING = re.compile(r"<(think|thinking|thought|reasoning|reflection)>.*?</\1>", re.DOTALL | re.I)
THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning|reflection)>", re.I)
FENCE = re.compile(r"(?:```|~~~)[ \t]*[\w+-]*[ \t]*\r?\n?(.*?)(?:```|~~~|\Z)", re.DOTALL)
INVISIBLE = " \t\r\n\ufeff\u200b\u2060"
CLOSED = re.compile(r"[\"'\u201d\u2019}\]][ \t\r\n,;]*\Z")
ESCAPED = re.compile(r'"\s*[{\[](?:\\n|[\s{\[])*\\"')  # an object written as a JSON string
# What may follow the mark that ends a text.
GOES_ON = re.compile(r"""\s*(?::\s*(?:["\[{\d-]|true|false|null)|,\s*["{\[]|[}\]]|\Z)""")
OTHER_NAMES = {
    "question": ("q", "query", "prompt", "ask"),
    "answer": ("a", "response", "reply", "correct_answer", "correct", "solution", "final_answer"),
    "reasoning": ("rationale", "explanation", "reason", "thought", "why"),
    "evidence": ("quote", "source", "support", "supporting_sentence", "citation", "context"),
    "distractors": ("wrong_answers", "incorrect_answers", "wrong", "other_options"),
    "sentence": ("statement", "text", "question"),
    "summary": ("text", "answer"),
    "missing": ("what_is_missing", "missing_information", "unanswered"),
    "supported": ("verdict", "answer", "result"),
}
TEXT_KEYS = ("text", "value", "content", "answer")


class Item(BaseModel):
    """One row of a reply. Fields that nobody asked for are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=True)


AnyItem = TypeVar("AnyItem", bound=Item)


@dataclass(frozen=True)
class Shape(Generic[AnyItem]):
    """What was asked for: one object of `item`, or a list of them under `name`."""

    item: type[AnyItem]
    name: str = ""


@dataclass(frozen=True)
class Parsed(Generic[AnyItem]):
    """The whole rows; of the others what is wrong and their text; whether anything was mended."""

    items: tuple[AnyItem, ...]
    refused: tuple[tuple[str, str], ...] = ()
    mended: bool = False


def parse(text: str, shape: Shape[AnyItem], cut_off: bool = False) -> Parsed[AnyItem]:
    """Errors: UnusableError `empty_reply`, `cut_off` (before its first whole row) or
    `invalid_reply`, in words that can be told to the teacher."""
    if not text.strip():
        raise UnusableError("empty_reply", "the reply is empty")
    best: Parsed[AnyItem] | None = None
    best_worth = (0, 0, 0)
    problem = "it holds no JSON object"
    for body, mends in _bodies(text):
        try:
            value, guessed = _load(body)
        except ValueError:
            continue
        mended = guessed > 0
        parsed = _fit(value, shape, mends or mended, whole=not mended or _closed(body))
        if parsed.items and not parsed.refused and not mended:
            return parsed
        worth = len(parsed.items), -len(parsed.refused), -guessed
        if best is None or worth > best_worth:
            best, best_worth = parsed, worth
        if parsed.refused:
            problem = parsed.refused[0][0]
    if best is not None and best.items:
        return best
    if cut_off:
        raise UnusableError("cut_off", "the reply was longer than max_tokens")
    raise UnusableError("invalid_reply", problem)


def _bodies(text: str) -> Iterator[tuple[str, bool]]:
    """Where the JSON may be, likeliest first, and whether that is less than the whole reply."""
    text = text.strip(INVISIBLE)
    yield text, False
    spoken = THINKING.sub("", text)
    if ends := list(THOUGHT_END.finditer(spoken)):
        spoken = spoken[ends[-1].end() :]
    places = [found[1] for found in FENCE.finditer(spoken)][::-1]
    for place in [*places, spoken, text]:
        yield from ((body, True) for body in _spans(place))


def _spans(text: str) -> Iterator[str]:
    """From the first bracket to the last, to the end, and every object by itself as a list."""
    if quoted := ESCAPED.search(text):
        with suppress(ValueError):
            yield json.JSONDecoder().raw_decode(text, quoted.start())[0]
    starts = [at for sign in "{[" if (at := text.find(sign)) >= 0]
    if not starts:
        return
    for start in sorted(starts):
        end = max(text.rfind("}"), text.rfind("]"))
        if end > start:
            yield text[start : end + 1]
        yield text[start:]
    objects = _objects(text)
    if len(objects) > 1:
        yield f"[{','.join(objects)}]"
        yield from reversed(objects)


def _objects(text: str) -> list[str]:
    """Balanced {...} that stand side by side; braces inside double quotes do not count."""
    found, depth, start, quoted, skip = [], 0, 0, False, False
    for at, sign in enumerate(text):
        if skip:
            skip = False
        elif quoted and sign == "\\":
            skip = True
        elif sign == '"' and depth:
            quoted = not quoted
        elif quoted:
            continue
        elif sign == "{":
            start = start if depth else at
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
            if not depth:
                found.append(text[start : at + 1])
    return found


def _closed(body: str) -> bool:
    """Whether the text ends where a value ends, not in the middle of one."""
    inside = False
    for piece in re.finditer(r'\\.|"', body, re.DOTALL):
        inside ^= piece[0] == '"'
    return not inside and CLOSED.search(body) is not None


def _load(body: str) -> tuple[Any, int]:
    """The value, and how much was guessed: nothing, where texts end, or anything.

    Errors: ValueError if it is no object or list.
    """
    try:
        value, guessed = json.loads(body), 0
    except (ValueError, RecursionError):
        if not any(sign in body for sign in "{["):
            raise ValueError("no bracket") from None
        value, guessed = _mend(body)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value, guessed = _load(value)[0], 1  # JSON inside a JSON string
    if not isinstance(value, dict | list):
        raise ValueError("neither an object nor a list")
    return value, guessed


def _mend(body: str) -> tuple[Any, int]:
    with suppress(ValueError, RecursionError):
        return json.loads(_escaped(body), strict=False), 1
    mender = require("json_repair", "generate", "Mending a teacher's malformed replies")
    try:
        return mender.loads(body, skip_json_loads=True), 2
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _escaped(body: str) -> str:
    """Every quotation mark inside a text escaped: one after which no JSON could go on."""
    signs: list[str] = []
    inside, at = False, 0
    while at < len(body):
        sign = body[at]
        if inside and sign == "\\":
            signs.append(body[at : at + 2])
            at += 2
            continue
        if sign == '"':
            if not inside:
                inside = True
            elif GOES_ON.match(body, at + 1):
                inside = False
            else:
                sign = '\\"'
        signs.append(sign)
        at += 1
    return "".join(signs)


def _fit(value: Any, shape: Shape[AnyItem], mended: bool, whole: bool) -> Parsed[AnyItem]:
    rows, moved = _rows(value, shape)
    items: list[AnyItem] = []
    refused: list[tuple[str, str]] = []
    for number, row in enumerate(rows, 1):
        try:
            if number == len(rows) and not whole:
                raise ValueError("it is cut off here")
            fields, changed = _fields(row, shape.item)
            items.append(shape.item.model_validate(fields))
            moved |= changed
        except (ValidationError, ValueError) as error:
            written = json.dumps(row, ensure_ascii=False, default=str)
            # Half of a sign stays as the teacher wrote it, \ud83d: no file can hold it otherwise.
            written = written.encode("utf-8", "backslashreplace").decode()
            refused.append((problem_of(error), written))
    return Parsed(tuple(items), tuple(refused), mended or moved)


def problem_of(error: ValidationError | ValueError) -> str:
    """The first thing that is wrong with a row, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def _rows(value: Any, shape: Shape[Any]) -> tuple[list[Any], bool]:
    """The rows in a value, however they were wrapped, and whether that was not as asked."""
    needed = set(shape.item.model_fields)
    if isinstance(value, list):
        parts = [_rows(one, shape) if isinstance(one, dict) else ([one], True) for one in value]
        return [row for rows, _ in parts for row in rows], True
    named = {_name(key): inner for key, inner in value.items()}
    if shape.name and isinstance(named.get(shape.name), list):
        return named[shape.name], False
    if shape.name and isinstance(named.get(shape.name), dict | str):
        with suppress(ValueError):
            return _rows(_load(_as_text(named[shape.name]))[0], shape)[0], True
    if len(needed & _known(named, shape.item)) * 2 > len(needed):
        return [value], bool(shape.name)
    inner = [one for one in value.values() if isinstance(one, dict | list)]
    if (
        len(inner) == 1
        and isinstance(inner[0], list)
        and any(isinstance(r, dict) for r in inner[0])
    ):
        return _rows(inner[0], shape)[0], True
    if inner and all(isinstance(one, dict) for one in inner):  # {"1": {...}, "2": {...}}
        return [row for one in inner for row in _rows(one, shape)[0]], True
    return [value], bool(shape.name)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _name(key: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(key).strip().casefold())


def _known(named: dict[str, Any], item: type[Item]) -> set[str]:
    return {
        field
        for field in item.model_fields
        if field in named or any(other in named for other in OTHER_NAMES.get(field, ()))
    }


def _fields(row: Any, item: type[Item]) -> tuple[dict[str, Any], bool]:
    """The row's values under the item's names and in its types. Errors: ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"{str(row)[:80]!r} is not an object")
    named = {_name(key): value for key, value in row.items()}
    changed = any(_name(key) != key for key in row)
    made: dict[str, Any] = {}
    for field, info in item.model_fields.items():
        names = (
            field,
            *(one for one in OTHER_NAMES.get(field, ()) if one not in item.model_fields),
        )
        found = next((name for name in names if named.get(name) is not None), None)
        if found is None:
            continue
        value = _text(named[found]) if info.annotation is str else named[found]
        if info.annotation is not str and isinstance(value, str | dict | list):
            value = _texts(value)
        changed |= found != field or value != named[found]
        made[field] = value
    return made, changed


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value and all(_is_plain(one) for one in value):
        return ", ".join(str(one) for one in value)
    if isinstance(value, dict):
        inner = [value[key] for key in TEXT_KEYS if _is_plain(value.get(key))]
        if not inner and len(value) == 1:
            inner = [one for one in value.values() if _is_plain(one)]
        return str(inner[0]) if inner else value
    return value


def _texts(value: str | dict[str, Any] | list[Any]) -> list[Any]:
    if isinstance(value, str):
        border = "\n" if "\n" in value else ";" if ";" in value else ","
        return [one.strip() for one in value.split(border) if one.strip()]
    return [_text(one) for one in (value.values() if isinstance(value, dict) else value)]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
