"""The recipe fields that documentation names, and whether a recipe has them.

In: Markdown. Out: dotted names such as `distill.student.fit_tokens`; whether one exists.
"""

from __future__ import annotations

import re
import typing
from typing import Any

from pydantic import BaseModel

from potstill.recipe import Recipe, SpanRecipe

NAMED = re.compile(r"`([a-z]+(?:\.[a-z0-9_]+)+)(?:[:=][^`]*)?`")
SET = re.compile(r"--set ([a-z]+(?:\.[a-z0-9_]+)*)=")
ENDINGS = (".py", ".json", ".jsonl", ".yaml", ".html", ".md")


def fields(text: str) -> set[str]:
    """Every dotted name that begins with a section of the recipe."""
    found = {*NAMED.findall(text), *SET.findall(text)}
    known = {*Recipe.model_fields, *SpanRecipe.model_fields}
    return {one for one in found if one.split(".")[0] in known and not one.endswith(ENDINGS)}


def exists(name: str) -> bool:
    """Whether a recipe of either kind has the field."""
    return _within([Recipe, SpanRecipe], name.split("."))


def _within(kinds: list[type[BaseModel]], parts: list[str]) -> bool:
    found = [kind.model_fields[parts[0]] for kind in kinds if parts[0] in kind.model_fields]
    if not found or len(parts) == 1:
        return bool(found)
    if any("dict" in str(field.annotation) for field in found):
        return True  # the user's own names follow
    return _within([one for field in found for one in _models_in(field.annotation)], parts[1:])


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _models_in(part)]
