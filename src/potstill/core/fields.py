"""A YAML file of fields, read so that each mistake in it is one line with file, line and remedy.

In: a path, and the pydantic model that the fields are for. Out: plain values with the place of
each, and `RecipeError`s for what is wrong. Knows nothing of which fields there are.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from potstill.errors import RecipeError

LARGEST_FILE = 1 << 20
MOST_VALUES = 100_000
"""Of a text once its aliases are unfolded: a few lines of them can stand for any number."""
MOST_BITS = 13_000
"""Of a whole number, some 3,900 digits: Python prints 4,300 and no more."""
LONGEST_NAME = 200
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What PyYAML lets through of values that are not what their tag or form says."""
Places = dict[tuple[str, ...], str]
"""Where each field was given: ("distill", "epochs") -> "mine.yaml, line 6"."""


def find(source: str | Path, builtin: Mapping[str, Path], what: str) -> Path:
    """The file of that path or built-in name. `what`: recipe or study. Errors: RecipeError."""
    name = str(source)
    if name in builtin:
        return builtin[name]
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError) as error:
        raise RecipeError(f"There is no {what} called {name[:80]}.") from error
    looks_like_path = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    if path.is_dir():
        raise RecipeError(f"{name} is a folder, not a {what}.", "Name the YAML file inside it.")
    if looks_like_path:
        near = nearest(path.name, [one.name for one in path.parent.glob("*.y*ml")])
        raise RecipeError(f"There is no {what} file {name}.", near)
    built = {"recipe": "recipes", "study": "studies"}[what]
    hint = nearest(name, builtin) or f"Built-in {built}: {', '.join(builtin)}."
    raise RecipeError(f"There is no {what} called {name}.", hint)


def read(path: Path, what: str) -> tuple[dict[str, Any], Places]:
    """The file's plain values, and the place of every field. Errors: RecipeError."""
    return parse(_text(path, what), path.name)


def parse(text: str, name: str) -> tuple[dict[str, Any], Places]:
    """The text's plain values, and the place of every field in the file of that name. Errors:
    RecipeError."""
    node, data = _loaded(text, name)
    if not isinstance(data, dict):
        raise RecipeError(f"{name} is empty or not a list of `field: value` lines.")
    lines: dict[tuple[str, ...], int] = {}
    _note_lines(node, (), lines, name)
    return data, {place: f"{name}, line {line}" for place, line in lines.items()}


def value_of(text: str, name: str) -> Any:
    """The plain value of a text that is given by itself. Errors: RecipeError that begins with
    `name`."""
    return _loaded(text, name)[1]


def _loaded(text: str, name: str) -> tuple[Any, Any]:
    """The text's nodes and its plain values."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _unfolded(node, {}, name)
        data = yaml.safe_load(text)
        _can_be_said(data, name)
        return node, data
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{name}{where}: not valid YAML ({problem}).") from error
    except RecursionError:
        raise RecipeError(f"{name}: not valid YAML (nested too deeply).") from None
    except UNREADABLE as error:
        problem = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise RecipeError(f"{name}: a value is not what its form says ({problem}).") from error


def _unfolded(node: Any, known: dict[int, int], name: str) -> int:
    """How many values there are below a node, aliases unfolded. Errors: RecipeError."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise RecipeError(f"{name}: an alias stands within what it stands for.")
        return known[id(node)]
    known[id(node)] = 0
    inner: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    count = 1 + sum(_unfolded(one, known, name) for one in inner)
    if count > MOST_VALUES:
        raise RecipeError(
            f"{name}: there are more than {MOST_VALUES:,} values in it.",
            "Aliases (*name) are counted as what they stand for.",
        )
    known[id(node)] = count
    return count


def _can_be_said(value: Any, name: str) -> None:
    """Errors: RecipeError for a number that Python does not print: hexadecimal and binary ones have
    no limit where they are read."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise RecipeError(f"{name}: a number in it has more than 4,000 digits.")
    if isinstance(value, dict):
        value = [one for pair in value.items() for one in pair]
    if isinstance(value, list | tuple | set):
        for one in value:
            _can_be_said(one, name)


def _text(path: Path, what: str) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise RecipeError(f"{path} is larger than 1 MiB; that is no {what}.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error
    except PermissionError as error:
        raise RecipeError(f"{path} may not be read.", "Change its permissions.") from error


def _note_lines(
    node: Any, place: tuple[str, ...], lines: dict[tuple[str, ...], int], name: str
) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*place, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise RecipeError(
                f"{name}, line {line}: {'.'.join(here)} is given twice "
                f"(first on line {lines[here]}).",
                "Keep one of them.",
            )
        lines[here] = line
        _note_lines(value, here, lines, name)


def put(data: dict[str, Any], names: Sequence[str], value: Any) -> str | None:
    """Set the nested field; sections on the way are made. Returns the name that is no section,
    if one on the way is a value, and changes nothing then."""
    target = data
    for name in names[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            return name
        target = inner
    target[names[-1]] = value
    return None


def explain(
    kind: type[BaseModel], error: ValidationError, places: Places, file: str, schema_hint: str
) -> RecipeError:
    """The first mistake as one line; how many more there are."""
    first = error.errors(include_url=False)[0]
    place = tuple(str(part) for part in first["loc"])
    given_at = (places[place[:n]] for n in range(len(place), 0, -1) if place[:n] in places)
    where = next(given_at, file)
    field = ".".join(place)[:LONGEST_NAME]
    hint = ""
    if first["type"] == "extra_forbidden":
        known = fields_at(kind, place[:-1])
        message = f"{where}: there is no field {field}."
        listed = f"Known here: {', '.join(known)}." if known else schema_hint
        hint = nearest(place[-1], known) or listed
    elif first["type"] == "missing":
        message = f"{where}: the field {field} is missing."
        hint = f"Add it; {schema_hint}"
    else:
        given = _shown(first["input"])
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{where}: {field} = {given} is not right: {reason}."
        if isinstance(first["input"], dict):  # what does not fit together; a key may stand in it
            message = f"{where}: {field}: {reason}." if place else f"{where}: {reason}."
    more = error.error_count() - 1
    if more:
        hint = f"{hint} ({more} more mistake{'s' if more > 1 else ''} after this one.)"
    return RecipeError(message, hint)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of so many digits
        text = "a number of very many digits"
    return text if len(text) <= 60 else text[:57] + "..."


def fields_at(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    """Names of the fields in the section at `place`; none if there is no such section.

    A place in a list is its number; where a list holds several kinds of sections, the name that
    tells them apart follows.
    """
    rest = list(place)
    while rest:
        field = kind.model_fields.get(rest.pop(0))
        found = _sections_in(field.annotation) if field is not None else []
        while rest and rest[0].isdigit():
            rest.pop(0)
        if len(found) > 1 and rest:
            name = rest.pop(0)
            found = [one for one in found if name in _defaults(one)]
        if len(found) != 1:
            return []
        kind = found[0]
    return list(kind.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _sections_in(part)]


def _defaults(kind: type[BaseModel]) -> list[Any]:
    return [field.default for field in kind.model_fields.values()]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that is like this one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""
