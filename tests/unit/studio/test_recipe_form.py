"""The form has every field of the recipe's schema, and says at which one a mistake is."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from potstill.errors import RecipeError
from potstill.recipe import KINDS, builtin_recipes
from potstill.studio import recipe_form

QUICKSTART: dict[str, Any] = yaml.safe_load(builtin_recipes()["quickstart"].read_text("utf-8"))


def names_of(kind: type[BaseModel]) -> set[str]:
    """Fields by the models themselves: an independent walk."""
    found = set()
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= {f"{name}.{one}" for one in names_of(inner)}
        else:
            found.add(name)
    return found


@pytest.mark.parametrize("task", sorted(KINDS))
def test_every_field_of_the_recipe_is_in_the_form_once(task: str) -> None:
    sections = recipe_form.form({"task": task})
    shown = [
        field.name
        for section in sections
        for fields in (section.first, *section.more.values())
        for field in fields
    ]
    assert len(shown) == len(set(shown))
    assert set(shown) == names_of(KINDS[task])
    assert all(field.help for section in sections for field in section.first)


def test_what_the_recipe_gives_is_shown_at_once_and_the_rest_has_its_default() -> None:
    sections = {one.name: one for one in recipe_form.form(QUICKSTART)}
    distill = {one.name: one for one in sections["distill"].first}
    assert distill["distill.epochs"].text == "5"
    assert distill["distill.student.axes"].text == "width"
    folded = {one.name: one for part in sections["distill"].more.values() for one in part}
    assert not set(folded) & set(distill)
    assert not folded["distill.student.drop_layers"].given


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("distill.epochs", "3", 3),
        ("distill.learning_rate", "3e-4", "3e-4"),  # YAML's own reading; the recipe takes it
        ("ingest.sources", "a.pdf\n\n b.pdf \r\n", ["a.pdf", "b.pdf"]),
        ("ingest.keep_sections", "false", False),
        ("name", "3", "3"),
        ("distill.kd_weight", "{start: 0.1, end: 1}", {"start": 0.1, "end": 1}),
        ("distill.epochs", "  ", None),
    ],
)
def test_a_controls_text_means_what_its_field_needs(name: str, text: str, value: Any) -> None:
    place, found = recipe_form.meaning(QUICKSTART, name, text)
    assert ".".join(place) == name
    assert found == value


def test_no_field_and_no_value_are_refused() -> None:
    with pytest.raises(RecipeError, match="no field"):
        recipe_form.meaning(QUICKSTART, "distill.epoch", "3")
    with pytest.raises(RecipeError, match="no value"):
        recipe_form.meaning(QUICKSTART, "distill.epochs", "[")


def test_mistakes_are_said_at_their_fields_and_the_rest_above() -> None:
    assert recipe_form.mistakes(QUICKSTART) == ({}, [])
    wrong = QUICKSTART | {
        "name": "No Name",
        "nonsense": 1,
        "ingest": {"sources": ["x"], "chunk_tokens": "many", "chunk_token": 3},
        "distill": {"kd_weight": "much", "teachers": [{"weight": -1}]},
    }
    at_field, others = recipe_form.mistakes(wrong)
    assert set(at_field) == {
        "name", "ingest.chunk_tokens", "distill.kd_weight", "distill.teachers",
    }  # fmt: skip
    assert at_field["ingest.chunk_tokens"].startswith("Has to be a valid integer")
    assert any("Did you mean chunk_tokens?" in one for one in others)
    assert any("nonsense" in one for one in others)
    apart = QUICKSTART | {"evaluate": {"teacher": "pypi:other"}}
    assert "evaluate.teacher" in recipe_form.mistakes(apart)[1][0]
