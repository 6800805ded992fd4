"""The searched fields against the recipe's own: each exists, fits, and may take its extremes.

In: the `search` section of a study, the recipe around it. Out: a description of each field's
values, or one RecipeError that names file and line. Starts nothing, and knows no search library.
"""

from __future__ import annotations

import itertools
import json
import random
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from potstill.core.fields import Places, nearest
from potstill.core.stage import StageConfig
from potstill.errors import RecipeError
from potstill.pipeline import PIPELINE
from potstill.recipe import Recipe
from potstill.tune.config import Space

NO_EFFECT = ("name", "description")
MOST_CORNERS = 256


@dataclass(frozen=True)
class Dimension:
    """A searched field. kind: int or float (a range), or choice."""

    field: str
    kind: Literal["int", "float", "choice"]
    space: Space

    @property
    def corners(self) -> list[Any]:
        """The extreme values: both ends of a range, every choice."""
        if self.space.choices is not None:
            return list(self.space.choices)
        assert self.space.low is not None
        return [self.number(self.space.low), self.number(self.top)]

    @property
    def top(self) -> float:
        """The largest number that can be drawn: the last whole step."""
        low, high, step = self.space.low, self.space.high, self.space.step
        assert low is not None
        assert high is not None
        return high if step is None else low + int((high - low) / step + 1e-9) * step

    def number(self, value: float) -> float | int:
        """The value as the field takes it."""
        return round(value) if self.kind == "int" else value

    def decode(self, suggested: Any) -> Any:
        """A suggestion as the recipe's value. Choices travel as JSON, for they may be lists."""
        return json.loads(suggested) if self.kind == "choice" else suggested


def dimensions(
    search: Mapping[str, Space], until: str, places: Places, recipe: Recipe
) -> list[Dimension]:
    """Each searched field with its kind.

    until: the last stage of a trial. recipe: around them; its task says which fields there are.
    Errors: RecipeError for a field that does not exist, does not fit its space, or cannot change
    what a trial of those stages measures.
    """
    found = []
    for field, space in search.items():
        where = f"{places.get(('search', field), 'study')}: search.{field}"
        _check_effect(field, until, where, recipe)
        kinds = _value_types(field, where, type(recipe))
        if space.choices is not None:
            found.append(Dimension(field, "choice", space))
        elif float in kinds:
            found.append(Dimension(field, "float", space))
        elif int in kinds:
            for name in ("low", "high", "step"):
                number = getattr(space, name)
                if number is not None and number != round(number):
                    raise RecipeError(f"{where} takes whole numbers, and its {name} is {number:g}.")
            found.append(Dimension(field, "int", space))
        else:
            raise RecipeError(f"{where} is not a number.", "Name its values as choices: [...].")
    return found


def _check_effect(field: str, until: str, where: str, recipe: Recipe) -> None:
    stages = [stage.name for stage in PIPELINE]
    first, _, rest = field.partition(".")
    if field in NO_EFFECT:
        raise RecipeError(f"{where} has no effect on any figure.")
    if field == "task":
        raise RecipeError(f"{where} cannot be searched: each task has fields of its own.")
    if first not in stages:
        return
    if stages.index(first) > stages.index(until):
        raise RecipeError(
            f"{where} cannot change the objective, which is known after the stage {until}.",
            "Search another field, or for another figure.",
        )
    config = getattr(recipe, first)
    if rest.split(".")[0] in config.not_in_key:
        raise RecipeError(f"{where} has no effect on any figure.")


def _value_types(field: str, where: str, recipe: type[Recipe]) -> set[Any]:
    """The plain types that the field takes. Errors: RecipeError if there is no such field."""
    kinds: set[Any] = {recipe}
    for name in field.split("."):
        sections = [
            kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        known = {
            one: part.annotation for kind in sections for one, part in kind.model_fields.items()
        }
        if name not in known:
            hint = nearest(name, known) or (f"Known here: {', '.join(known)}." if known else "")
            raise RecipeError(f"{where}: a recipe has no such field ({name}).", hint)
        kinds = set(_plain(known[name]))
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if (
        kinds
        and len(sections) == len(kinds)
        and any(issubclass(one, StageConfig) for one in sections)
    ):
        raise RecipeError(f"{where} is a whole section.", "Search its fields.")
    return kinds


def _plain(annotation: Any) -> list[Any]:
    """The members of a union, unwrapped."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _plain(part)]
    return [annotation]


def corners(
    found: Sequence[Dimension], make: Callable[[Mapping[str, Any]], Recipe], where: str
) -> list[Recipe]:
    """The recipes of every combination of extremes, or of 256 of them drawn by lot.

    make: the recipe with these values. Errors: RecipeError with the values that it refuses.
    """
    sides = [one.corners for one in found]
    count = 1
    for side in sides:
        count *= len(side)
    lot = random.Random(0)
    combined = (
        itertools.product(*sides)
        if count <= MOST_CORNERS
        else ([lot.choice(side) for side in sides] for _ in range(MOST_CORNERS))
    )
    # Each extreme once for itself, whatever the lot leaves out.
    alone = (
        [other[0] if other is not side else value for other in sides]
        for side in sides
        for value in side
    )
    made = []
    for corner in itertools.chain(alone, combined):
        values = {one.field: value for one, value in zip(found, corner, strict=True)}
        try:
            made.append(make(values))
        except RecipeError as error:
            blamed = [one for one in values if one in error.message] or list(values)
            shown = ", ".join(f"{name} = {values[name]!r}" for name in blamed)
            reason = error.message.removeprefix("recipe: ")
            raise RecipeError(
                f"{where}: a trial could draw {shown}, and the recipe refuses that: {reason}",
                error.hint or "Narrow the space.",
            ) from error
    return made
