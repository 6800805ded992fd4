"""The recipe as a form, made from the recipe's own JSON Schema, and what is wrong at which field.

In: a recipe's plain values. Out: sections of fields with their help texts, values and defaults;
mistakes by field; the value that a control's text means. Knows no field by itself but `FIRST`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml
from pydantic import ValidationError

from potstill.core import fields
from potstill.errors import RecipeError
from potstill.recipe import KINDS, Recipe, recipe_schema

Place = tuple[str, ...]
FIRST = frozenset(
    """name description teacher ingest.sources ingest.chunk_tokens generate.pairs_per_chunk
    generate.budget.money curate.test_fraction distill.student.model
    distill.student.parameters_ratio distill.epochs distill.max_tokens distill.learning_rate
    evaluate.max_examples export.quantisations""".split()
)
"""Fields that are shown at once; beside them those that the recipe gives. All others are folded."""
TOP = "This run"


@dataclass(frozen=True)
class FieldView:
    """One field. kind: text, lines (a list of texts), choice, switch, or value (anything else, as
    YAML on one line). text: what its control shows; empty where the recipe does not give it."""

    place: Place
    kind: str
    help: str
    text: str
    given: bool
    default: str
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def name(self) -> str:
        """As a recipe and a command line name it."""
        return ".".join(self.place)

    @property
    def id(self) -> str:
        """For the page."""
        return "f-" + "-".join(self.place)

    @property
    def label(self) -> str:
        """For people: the last part of its name in words."""
        return self.place[-1].replace("_", " ").capitalize()

    @property
    def whole_label(self) -> str:
        """The same with the part of the section that it is in: Student: parameters ratio."""
        parts = [one.replace("_", " ") for one in (self.place[1:] or self.place)]
        return ": ".join(parts).capitalize()


@dataclass
class Section:
    """A section of the form. more: the folded fields, by the part of the section they are in."""

    name: str
    help: str
    first: list[FieldView] = field(default_factory=list)
    more: dict[str, list[FieldView]] = field(default_factory=dict)


@dataclass(frozen=True)
class Leaf:
    """A field as the schema has it."""

    place: Place
    schema: Mapping[str, Any]


def form(data: Mapping[str, Any]) -> list[Section]:
    """The sections of a recipe's form, each field with what the recipe gives."""
    task = _task(data)
    sections = {TOP: Section(TOP, "")}
    for name, schema in _sections(task).items():
        sections[name] = Section(name, str(schema.get("description", "")))
    for leaf in leaves(task):
        section = sections[leaf.place[0] if len(leaf.place) > 1 else TOP]
        shown = _view(leaf, data)
        if shown.given or shown.name in FIRST:
            section.first.append(shown)
        else:
            section.more.setdefault(".".join(leaf.place[1:-1]), []).append(shown)
    return list(sections.values())


def leaves(task: str) -> tuple[Leaf, ...]:
    """Every field of a recipe of that task."""
    return _leaves(task)


@cache
def _leaves(task: str) -> tuple[Leaf, ...]:
    definitions = _definitions()
    return tuple(_walk(definitions[KINDS[task].__name__], (), definitions))


@cache
def _definitions() -> dict[str, Any]:
    found: dict[str, Any] = recipe_schema()["$defs"]
    return found


def _sections(task: str) -> dict[str, Mapping[str, Any]]:
    root = _definitions()[KINDS[task].__name__]["properties"]
    resolved = {name: _resolved(one, _definitions()) for name, one in root.items()}
    return {name: one for name, one in resolved.items() if "properties" in one}


def _walk(schema: Mapping[str, Any], place: Place, definitions: dict[str, Any]) -> Iterator[Leaf]:
    for name, raw in schema.get("properties", {}).items():
        inner = _resolved(raw, definitions)
        here = (*place, name)
        if "properties" in inner and "anyOf" not in inner and "oneOf" not in inner:
            yield from _walk(inner, here, definitions)
        else:
            yield Leaf(here, inner)


def _resolved(schema: Mapping[str, Any], definitions: dict[str, Any]) -> Mapping[str, Any]:
    """The schema with its reference followed; what stands beside the reference wins."""
    while "$ref" in schema:
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **beside}
    return schema


def _view(leaf: Leaf, data: Mapping[str, Any]) -> FieldView:
    value: Any = data
    given = True
    for name in leaf.place:
        given = given and isinstance(value, Mapping) and name in value
        value = value[name] if given else None
    kind, choices = _kind(leaf.schema)
    default = leaf.schema.get("default")
    return FieldView(
        place=leaf.place,
        kind=kind,
        help=str(leaf.schema.get("description", "")),
        text=_text(kind, value) if given else "",
        given=given,
        default="" if default is None else _text(kind, default),
        choices=choices,
        many=kind == "lines" or (kind == "text" and "\n" in str(value if given else default)),
    )


def _kind(schema: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    definitions = _definitions()
    if "enum" in schema:
        return "choice", tuple(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind == "boolean":
        return "switch", ("true", "false")
    if kind == "string":
        return "text", ()
    items = _resolved(schema.get("items") or {}, definitions)
    if kind == "array" and items.get("type") == "string":
        return "lines", ()
    return "value", ()


def _text(kind: str, value: Any) -> str:
    if kind == "lines" and isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return str(dumped).removesuffix("\n").removesuffix("\n...")


def meaning(data: Mapping[str, Any], name: str, text: str) -> tuple[Place, Any]:
    """The place of the field of that name, and the value that its control's text stands for; None:
    none was given. Errors: RecipeError for an unknown field, or text that is no value."""
    leaf = next((one for one in leaves(_task(data)) if ".".join(one.place) == name), None)
    if leaf is None:
        raise RecipeError(f"There is no field {name[:80]}.")
    kind, _ = _kind(leaf.schema)
    if not text.strip():
        return leaf.place, None
    if kind == "lines":
        return leaf.place, [line.strip() for line in text.splitlines() if line.strip()]
    if kind in ("text", "choice"):
        return leaf.place, text.replace("\r\n", "\n")
    try:
        return leaf.place, fields.value_of(text, name)
    except RecipeError as error:
        raise RecipeError(f"{text[:60]} is no value for {name}.") from error


def mistakes(data: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What is wrong: by the field's name, and what belongs to no field of the form."""
    try:
        Recipe.from_dict(data)
    except RecipeError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            return {}, [str(error)]
        return _sorted(data, cause)
    return {}, []


def _sorted(data: dict[str, Any], error: ValidationError) -> tuple[dict[str, str], list[str]]:
    task = _task(data)
    known = {leaf.place for leaf in leaves(task)}
    at_field: dict[str, str] = {}
    others: list[str] = []
    for one in error.errors(include_url=False):
        place = tuple(map(str, one["loc"]))
        words = _words(KINDS[task], one["type"], one["msg"], place)
        # Inside a list, or where several kinds of values fit, the place goes below the field.
        field_place = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in known), ())
        if field_place:
            at_field.setdefault(".".join(field_place), words)
        else:
            others.append(f"{'.'.join(place)}: {words}" if place else words)
    return at_field, others


def _words(kind: type[Recipe], sort: str, message: str, place: Sequence[str]) -> str:
    if sort == "extra_forbidden":
        near = fields.nearest(place[-1], fields.fields_at(kind, place[:-1]))
        return f"There is no such field. {near}".strip()
    if sort == "missing":
        return "This is needed."
    if sort == "string_pattern_mismatch":
        return "That does not fit what is said below."
    words = message.removeprefix("Value error, ").removeprefix("Input should be ").strip()
    if message.startswith("Input should be "):
        words = f"has to be {words}"
    if not set("._") & set(words.split(" ", 1)[0]):  # a field's name stays as it is written
        words = words[:1].upper() + words[1:]
    return words if words.endswith(".") else f"{words}."


def _task(data: Mapping[str, Any]) -> str:
    task = str(data.get("task", "text"))
    return task if task in KINDS else "text"
