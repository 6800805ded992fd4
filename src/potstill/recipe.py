"""The recipe: one file that says everything about a run.

In: a YAML file or the name of a built-in recipe, and overrides such as `distill.epochs=3`.
Out: a validated, immutable `Recipe`, whose sections are the stages' own configurations.
A mistake is one RecipeError with file, line, field and the nearest known name.
This file knows which sections there are, and nothing of what the stages do with them.
"""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from potstill.curate import CurateConfig
from potstill.distill import CorrectConfig, DistillConfig
from potstill.errors import RecipeError
from potstill.evaluate import EvaluateConfig
from potstill.export import ExportConfig
from potstill.generate import GenerateConfig
from potstill.ingest import IngestConfig

LARGEST_RECIPE = 1 << 20
SHARED = ("teacher",)  # top-level fields that fill a stage's field of the same name
Section = Annotated[dict[str, Any], Field(default_factory=dict)]


class Recipe(BaseModel):
    """What to distil, from what, how, and how it is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Name of the run's folder: lower-case letters, digits, - and _.",
    )
    description: str = Field("", description="One sentence for people.")
    seed: int = Field(17, ge=0, lt=2**31, description="Seed of everything that is drawn by lot.")
    teacher: str = Field(
        description="The teacher: a hub id, a folder, a GGUF file, or pypi:NAME. "
        "Fills the `teacher` of every section that does not name its own.",
    )
    ingest: IngestConfig = Field(description="Files -> documents -> chunks.")
    generate: GenerateConfig = Field(description="Chunks -> question-answer rows, by the teacher.")
    curate: CurateConfig = Field(description="Rows -> kept in a split, or rejected with a reason.")
    correct: CorrectConfig = Field(description="Rows and teacher -> a teacher that knows them.")
    distill: DistillConfig = Field(description="Rows and teacher -> student.")
    evaluate: EvaluateConfig = Field(description="Student against teacher, on held-out rows.")
    export: ExportConfig = Field(description="Student -> files that others run.")

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        if self.distill.student.start == "uncorrected" and self.correct.method == "none":
            raise ValueError(
                "distill.student.start: uncorrected is for a teacher that is corrected; set "
                "correct.method to full or lora"
            )
        for name in ("distill", "evaluate", "export"):
            other = getattr(self, name).teacher
            if self.correct.method != "none" and other != self.correct.teacher:
                raise ValueError(
                    f"{name}.teacher is {other}, but correct.teacher is {self.correct.teacher}; "
                    "the teacher that is corrected is the one that teaches"
                )
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe by path or built-in name and apply `section.field=value` overrides."""
        path = find_recipe(source)
        text = _read(path)
        data, lines = _parse(text, path)
        places: dict[tuple[str, ...], str] = {
            place: f"{path.name}, line {line}" for place, line in lines.items()
        }
        for override in overrides:
            places[_apply(data, override)] = f"--set {override}"
        return _validate(cls, data, places, path.name)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Validate a recipe given as plain Python values."""
        return _validate(cls, data, {}, "recipe")

    def to_yaml(self) -> str:
        """The whole recipe with every default spelled out, but for what sections take from its
        top: so a teacher that is changed there is changed everywhere."""
        values = self.model_dump(mode="json")
        for section in values.values():
            if isinstance(section, dict):
                for name in SHARED:
                    if section.get(name) == values[name]:
                        del section[name]
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def builtin_recipes() -> dict[str, Path]:
    """Name -> path of the recipes that come with Potstill."""
    folder = Path(str(importlib.resources.files("potstill"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """The recipe's file: a path if it looks like one, else a built-in name."""
    builtin = builtin_recipes()
    name = str(source)
    if name in builtin:
        return builtin[name]
    path = Path(name)
    if path.is_file():
        return path
    looks_like_path = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    if path.is_dir():
        raise RecipeError(f"{name} is a folder, not a recipe.", "Name the YAML file inside it.")
    if looks_like_path:
        near = _nearest(path.name, [one.name for one in path.parent.glob("*.y*ml")])
        raise RecipeError(f"There is no recipe file {name}.", near)
    hint = _nearest(name, builtin) or f"Built-in recipes: {', '.join(builtin)}."
    raise RecipeError(f"There is no recipe called {name}.", hint)


def _read(path: Path) -> str:
    if path.stat().st_size > LARGEST_RECIPE:
        raise RecipeError(f"{path} is larger than 1 MiB; that is no recipe.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error
    except PermissionError as error:
        raise RecipeError(f"{path} may not be read.", "Change its permissions.") from error


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The YAML as plain values, and the line of every field."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{path.name}{where}: not valid YAML ({problem}).") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path.name} is empty or not a list of `field: value` lines.")
    lines: dict[tuple[str, ...], int] = {}
    _note_lines(node, (), lines, path)
    return data, lines


def _note_lines(
    node: Any, place: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path
) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*place, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise RecipeError(
                f"{path.name}, line {line}: {'.'.join(here)} is given twice "
                f"(first on line {lines[here]}).",
                "Keep one of them.",
            )
        lines[here] = line
        _note_lines(value, here, lines, path)


def _apply(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put the override's value into `data`; returns the field's place."""
    place, equals, text = override.partition("=")
    names = place.strip().split(".")
    if not equals or not all(names):
        raise RecipeError(
            f"--set {override}: not of the form section.field=value.",
            "For example: --set distill.epochs=3",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML.") from error
    target = data
    for name in names[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {name} is a value, not a section.")
        target = inner
    target[names[-1]] = value
    return tuple(names)


def _validate(
    kind: type[Recipe], data: dict[str, Any], places: dict[tuple[str, ...], str], file: str
) -> Recipe:
    data = _fill_shared(kind, data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(kind, error, places, file) from error


def _fill_shared(kind: type[Recipe], data: dict[str, Any]) -> dict[str, Any]:
    """Give each section the top-level teacher unless it names its own; absent sections are {}."""
    filled = dict(data)
    for name, field in kind.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            continue
        given = filled.get(name)
        if given is None:
            given = {}
        if isinstance(given, dict):
            shared = {
                one: data[one] for one in SHARED if one in data and one in section.model_fields
            }
            given = {**shared, **given}
        filled[name] = given
    return filled


def _explain(
    kind: type[Recipe],
    error: ValidationError,
    places: dict[tuple[str, ...], str],
    file: str,
) -> RecipeError:
    """The first mistake as one line; how many more there are. places: where a field was given."""
    first = error.errors(include_url=False)[0]
    place = tuple(str(part) for part in first["loc"])
    given_at = (places[place[:n]] for n in range(len(place), 0, -1) if place[:n] in places)
    where = next(given_at, file)
    field = ".".join(place)
    hint = ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, place[:-1])
        message = f"{where}: there is no field {field}."
        hint = _nearest(place[-1], known) or f"Known here: {', '.join(known)}."
    elif first["type"] == "missing":
        message = f"{where}: the field {field} is missing."
        hint = "Add it; `potstill config schema` describes every field."
    else:
        given = repr(first["input"])
        given = given if len(given) <= 60 else given[:57] + "..."
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{where}: {field} = {given} is not right: {reason}."
        if not place:  # of sections that do not fit together
            message = f"{where}: {reason}."
    more = error.error_count() - 1
    if more:
        hint = f"{hint} ({more} more mistake{'s' if more > 1 else ''} after this one.)"
    return RecipeError(message, hint)


def _fields_at(kind: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    for name in place:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""
