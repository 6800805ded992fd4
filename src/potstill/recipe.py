"""The recipe: one file that says everything about a run.

In: a YAML file or the name of a built-in recipe, and overrides such as `distill.epochs=3`.
Out: a validated, immutable `Recipe`, whose sections are the stages' own configurations.
A mistake is one RecipeError with file, line, field and the nearest known name.
This file knows which sections there are, and nothing of what the stages do with them.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from potstill.core import fields
from potstill.core.remote import is_address
from potstill.curate import CurateConfig
from potstill.distill import CorrectConfig, DistillConfig
from potstill.distill.extractive import SpanDistillConfig
from potstill.errors import RecipeError
from potstill.evaluate import EvaluateConfig
from potstill.evaluate.extractive import SpanEvaluateConfig
from potstill.export import ExportConfig
from potstill.export.extractive import SpanExportConfig
from potstill.generate import GenerateConfig
from potstill.inference.endpoint import only_writes
from potstill.ingest import IngestConfig

SCHEMA_HINT = "`potstill config schema` describes every field."
SHARED = ("teacher", "template")  # top-level fields that fill a stage's field of the same name
Section = Annotated[dict[str, Any], Field(default_factory=dict)]


class Recipe(BaseModel):
    """What to distil, from what, how, and how it is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Name of the run's folder: lower-case letters, digits, - and _.",
    )
    description: str = Field("", description="One sentence for people.")
    task: Literal["text", "spans"] = Field(
        "text",
        description="What the student does. text: it writes answers. spans: it marks the answer's "
        "place in a passage; `distill`, `evaluate` and `export` then have fields of their own.",
    )
    seed: int = Field(17, ge=0, lt=2**31, description="Seed of everything that is drawn by lot.")
    teacher: str = Field(
        description="The teacher: a hub id, a folder, a GGUF file, pypi:NAME, or fresh:NAME for "
        "one that is not trained yet (one behind an address goes into generate.teacher). "
        "Fills the `teacher` of every section that does not name its own.",
    )
    template: str = Field(
        "",
        description="Chat template (Jinja) that rows are put into instead of the models' own: for "
        "models that come without one, such as GPT-2. The student carries it into every file. "
        "Fills the `template` of every section that does not name its own.",
    )
    store: str = Field(
        "",
        description="Where finished results go besides the project's own `store/`: an address such "
        "as s3://bucket/prefix, without credentials. --store and $POTSTILL_STORE come before it.",
    )
    ingest: IngestConfig = Field(description="Files -> documents -> chunks.")
    generate: GenerateConfig = Field(description="Chunks -> question-answer rows, by the teacher.")
    curate: CurateConfig = Field(description="Rows -> kept in a split, or rejected with a reason.")
    correct: CorrectConfig = Field(description="Rows and teacher -> a teacher that knows them.")
    distill: DistillConfig = Field(description="Rows and teacher -> student.")
    evaluate: EvaluateConfig = Field(description="Student against teacher, on held-out rows.")
    export: ExportConfig = Field(description="Student -> files that others run.")

    @field_validator("store")
    @classmethod
    def _is_an_address(cls, given: str) -> str:
        if given and not is_address(given):
            raise ValueError(
                "an address such as s3://bucket/prefix; for a folder use --store or POTSTILL_STORE"
            )
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if (self.task == "spans") != isinstance(self, SpanRecipe):
            raise ValueError("a recipe of task: spans is a SpanRecipe; use Recipe.from_dict")
        self._check_sections()
        return self

    def _check_sections(self) -> None:
        """Errors: ValueError for sections that do not go together."""
        local = [("distill", one.teacher) for one in self.distill.voices]
        names = ["ingest", "evaluate", "export"]
        names += ["correct"] if self.correct.method != "none" else []
        _check_local([*local, *((name, getattr(self, name).teacher) for name in names)])
        if self.distill.student.start == "uncorrected" and self.correct.method == "none":
            raise ValueError(
                "distill.student.start: uncorrected is for a teacher that is corrected; set "
                "correct.method to full or lora"
            )
        first = self.distill.voices[0].teacher
        if self.correct.method != "none":
            for name, one in (("correct", self.correct.teacher), ("distill", self.distill.teacher)):
                if one != first:
                    raise ValueError(
                        f"{name}.teacher is {one}, but the first teacher of distill is {first}; "
                        "that one alone can be corrected"
                    )
        for name in ("evaluate", "export"):
            other = getattr(self, name).teacher
            if other != first:
                raise ValueError(
                    f"{name}.teacher is {other}, but the first teacher of distill is {first}; "
                    "set teacher at the top, or each of them"
                )
        names = ["evaluate"] + (["correct"] if self.correct.method != "none" else [])
        for name in names:
            if getattr(self, name).template != self.distill.template:
                raise ValueError(
                    f"{name}.template is not distill.template, so models would be prompted in "
                    "two ways; set template at the top"
                )

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe by path or built-in name and apply `section.field=value` overrides."""
        path = find_recipe(source)
        data, places = fields.read(path, "recipe")
        for override in overrides:
            places[_apply(data, override)] = f"--set {override[: fields.LONGEST_NAME]}"
        return _validate(data, places, path.name)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Validate a recipe given as plain Python values."""
        return _validate(data, {}, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe with every default spelled out, but for what sections take from its
        top: so a teacher that is changed there is changed everywhere."""
        values = self.model_dump(mode="json")
        for section in values.values():
            if isinstance(section, dict):
                for name in SHARED:
                    if section.get(name) == values[name]:
                        del section[name]
        return values

    def to_yaml(self) -> str:
        """`to_dict` as text."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


class SpanRecipe(Recipe):
    """A recipe whose student marks answers in passages (task: spans)."""

    distill: SpanDistillConfig = Field(  # type: ignore[assignment]
        description="Rows and teacher -> a student that marks answers (task: spans)."
    )
    evaluate: SpanEvaluateConfig = Field(  # type: ignore[assignment]
        description="Student against teacher, on held-out rows (task: spans)."
    )
    export: SpanExportConfig = Field(  # type: ignore[assignment]
        description="Student -> files that others run (task: spans)."
    )

    def _check_sections(self) -> None:
        if self.template or self.correct.template:
            raise ValueError("template is for students that write answers, not for task: spans")
        used = ["ingest", "evaluate"]
        used += ["correct"] if self.correct.method != "none" else []
        used += ["distill"] if self.distill.signal.source == "language_model" else []
        teachers = [(name, getattr(self, name).teacher) for name in used]
        _check_local(teachers)
        first = self.evaluate.teacher
        for name, one in teachers:
            if one != first and name != "ingest":
                raise ValueError(
                    f"{name}.teacher is {one}, but that of evaluate is {first}; set teacher at the "
                    "top, or each of them"
                )


KINDS: dict[str, type[Recipe]] = {"text": Recipe, "spans": SpanRecipe}


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes of every task."""
    made = TypeAdapter(Recipe | SpanRecipe).json_schema()
    names = {kind.__name__: {"$ref": f"#/$defs/{kind.__name__}"} for kind in KINDS.values()}
    spans = {"properties": {"task": {"const": "spans"}}, "required": ["task"]}
    return {
        "if": spans,
        "then": names["SpanRecipe"],
        "else": names["Recipe"],
        "$defs": made["$defs"],
    }


def _check_local(teachers: Sequence[tuple[str, str]]) -> None:
    """Errors: ValueError for a section whose teacher only writes, and must do more."""
    for name, teacher in teachers:
        if only_writes(teacher):
            raise ValueError(
                f"{name}.teacher is {teacher}, which can write rows but lends no tokenizer, "
                "probabilities or weights: name a local model as teacher at the top, and "
                f"{teacher} as generate.teacher"
            )


def builtin_recipes() -> dict[str, Path]:
    """Name -> path of the recipes that come with Potstill."""
    folder = Path(str(importlib.resources.files("potstill"))) / "recipes"
    found = {path.stem: path for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def find_recipe(source: str | Path) -> Path:
    """The recipe's file: a path if it looks like one, else a built-in name."""
    return fields.find(source, builtin_recipes(), "recipe")


def _apply(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put the override's value into `data`; returns the field's place."""
    place, equals, text = override.partition("=")
    names = place.strip().split(".")
    if not equals or not all(names):
        raise RecipeError(
            f"--set {override[: fields.LONGEST_NAME]}: not of the form section.field=value.",
            "For example: --set distill.epochs=3",
        )
    value = fields.value_of(text, f"--set {place.strip()[: fields.LONGEST_NAME]}")
    blocked = fields.put(data, names, value)
    if blocked is not None:
        raise RecipeError(
            f"--set {override[: fields.LONGEST_NAME]}: {blocked} is a value, not a section."
        )
    return tuple(names)


def _validate(data: dict[str, Any], places: dict[tuple[str, ...], str], file: str) -> Recipe:
    kind = KINDS.get(str(data.get("task", "text")), Recipe)
    data = _fill_shared(kind, data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise fields.explain(kind, error, places, file, SCHEMA_HINT) from error


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
