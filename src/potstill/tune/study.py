"""A study, read and checked: its configuration, the recipe around it, its searched fields.

In: a study file or a built-in study's name. Out: a `Study` that makes the recipe of any values.
Knows nothing of trials or of how values are suggested.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.core import fields
from potstill.core.fields import Places
from potstill.errors import RecipeError
from potstill.pipeline import PIPELINE, stages_of
from potstill.recipe import Recipe, builtin_recipes
from potstill.tune.config import StudyConfig
from potstill.tune.effect import check_fields, check_objective
from potstill.tune.space import NO_EFFECT, Dimension, corners, dimensions

STATUS = "status.json"
"""How many trials a study wants, and how many it has of each state: read without its database."""

GUIDE_HINT = "docs/guides/tuning.md describes every field of a study."


@dataclass(frozen=True)
class Study:
    """What is searched, around which recipe."""

    config: StudyConfig
    recipe: Recipe
    dimensions: tuple[Dimension, ...]

    @classmethod
    def load(
        cls, source: str | Path, *, trials: int | None = None, minutes: float | None = None
    ) -> Study:
        """Read a study by path or built-in name; `trials` and `minutes` replace its own.

        Errors: RecipeError names file, line, field and the nearest known name.
        """
        path = fields.find(source, builtin_studies(), "study")
        data, places = fields.read(path, "study")
        for name, value in (("trials", trials), ("minutes", minutes)):
            if value is not None:
                data[name] = value
                places[(name,)] = f"--{name}"
        return _checked(data, places, path.name, path.parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: Path | None = None) -> Study:
        """A study given as plain Python values; its recipe may be a file in `folder`."""
        return _checked(dict(data), {}, "study", folder or Path.cwd())

    def recipe_of(self, values: Mapping[str, Any], name: str | None = None) -> Recipe:
        """The recipe with these values of the searched fields. Errors: RecipeError."""
        return _with(self.recipe, {**values, "name": name or self.config.name})

    @property
    def until(self) -> str:
        """The last stage that a trial needs."""
        return self.config.until

    @property
    def shared_stages(self) -> list[str]:
        """The stages that no searched field touches: computed once for all trials."""
        stages = [stage.name for stage in PIPELINE]
        touched = {field.partition(".")[0] for field in self.config.search}
        if not touched <= set(stages):  # the seed or the teacher, which every stage knows
            return []
        first = min(stages.index(name) for name in touched)
        return stages[: min(first, stages.index(self.until))]

    @property
    def definition(self) -> dict[str, Any]:
        """What the figures of its trials depend on: a change of it makes another study."""
        recipe = self.recipe.model_dump(mode="json")
        for name in NO_EFFECT:
            del recipe[name]
        for stage in stages_of(self.recipe):
            for name in stage.config.not_in_key:
                recipe[stage.name].pop(name, None)
        for field in self.config.search:
            section: Any = recipe
            *outer, last = field.split(".")
            for name in outer:
                section = section[name] if isinstance(section.get(name), dict) else {}
            section.pop(last, None)
        search = {name: space.model_dump() for name, space in self.config.search.items()}
        return {"recipe": recipe, "search": search, "objective": dict(self.config.objective)}


def builtin_studies() -> dict[str, Path]:
    """Name -> path of the studies that come with Potstill."""
    folder = Path(str(importlib.resources.files("potstill"))) / "studies"
    found = {path.stem: path for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def _checked(data: dict[str, Any], places: Places, file: str, folder: Path) -> Study:
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        raise fields.explain(StudyConfig, error, places, file, GUIDE_HINT) from error
    beside = folder / config.recipe
    known = config.recipe in builtin_recipes() or not beside.is_file()
    recipe = Recipe.load(config.recipe if known else beside, config.set)
    found = dimensions(config.search, config.until, places, recipe)
    where = places.get(("search",), file)
    extremes = corners(found, lambda values: _with(recipe, values), where)
    check_fields(config.search, extremes, places)
    check_objective(config.objective, extremes, places)
    return Study(config, recipe, tuple(found))


def _with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    data = recipe.to_dict()
    for field, value in values.items():
        _open_sections(data, field)
        names = field.split(".")
        blocked = fields.put(data, names, value)
        if blocked is not None:
            above = ".".join(names[: names.index(blocked) + 1])
            raise RecipeError(
                f"{field} cannot be set: {above} is a value, not a section.",
                f"Give {above} as a section in the recipe or under `set`.",
            )
    return Recipe.from_dict(data)


def _open_sections(data: dict[str, Any], field: str) -> None:
    """A section that is unset (null) is opened, so that one of its fields can be set."""
    section = data
    for name in field.split(".")[:-1]:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            return
