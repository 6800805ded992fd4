"""The recipe fields that documentation names, and whether a recipe has them.

In: Markdown. Out: dotted names such as `distill.student.fit_tokens`, from sentences and from blocks
of YAML that are a part of a recipe; whether one exists.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import doc_commands
import yaml
from pydantic import BaseModel

from potstill.recipe import Recipe, SpanRecipe

NAMED = re.compile(r"`([a-z]+(?:\.[a-z0-9_]+)+)(?:[:=][^`]*)?`")
SET = re.compile(r"--set ([a-z]+(?:\.[a-z0-9_]+)*)=")
ENDINGS = (".py", ".json", ".jsonl", ".yaml", ".html", ".md")


def fields(text: str) -> set[str]:
    """Every dotted name that begins with a section of the recipe."""
    known = {*Recipe.model_fields, *SpanRecipe.model_fields}
    found = {*NAMED.findall(text), *SET.findall(text)}
    for label, block in doc_commands.blocks(text):
        values = yaml.safe_load(block) if label == "yaml" else None
        if isinstance(values, dict) and set(values) <= known:
            found |= set(_dotted(values, ""))
    return {one for one in found if one.split(".")[0] in known and not one.endswith(ENDINGS)}


def _dotted(values: dict[Any, Any], before: str) -> Iterator[str]:
    for name, value in values.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")


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
