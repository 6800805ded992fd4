"""A field is changed and nothing else; what comes out says what it should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core import fields
from potstill.errors import RecipeError
from potstill.recipe import builtin_recipes
from potstill.studio import recipe_form, recipe_text

RECIPES = {name: path.read_text("utf-8") for name, path in builtin_recipes().items()}
PLACES = [leaf.place for leaf in recipe_form.leaves("text")]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30),
    st.sampled_from(
        ["a: b", "# not a comment", "two\nlines", " ", "no", "3e-4", "- x", "'\"`{}[]"]
    ),
    st.lists(st.text(st.characters(codec="ascii", categories=["L", "P"]), max_size=8), max_size=3),
)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(RECIPES)), st.sampled_from(PLACES), VALUES)
def test_any_value_is_put_where_it_belongs_and_dropped_again(
    name: str, place: tuple[str, ...], value: Any
) -> None:
    text = RECIPES[name]
    wanted = copy.deepcopy(yaml.safe_load(text))
    assert fields.put(wanted, place, value) is None
    changed = recipe_text.put(text, place, value)
    assert yaml.safe_load(changed) == wanted
    dropped = yaml.safe_load(recipe_text.drop(changed, place))
    for part in place[:-1]:
        dropped = dropped.get(part, {})
    assert place[-1] not in dropped


@pytest.mark.parametrize("name", ["quickstart", "squad-lora", "chat-gguf-local"])
def test_comments_and_order_stay(name: str) -> None:
    text = RECIPES[name]
    changed = recipe_text.put(text, ("ingest", "sources"), ["documents/a.pdf"])
    changed = recipe_text.put(changed, ("distill", "epochs"), 2)
    changed = recipe_text.put(changed, ("correct", "method"), "lora")
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    kept = [line.strip() for line in changed.splitlines()]
    assert [one for one in kept if one.startswith("#")] == comments
    before = [one for one in yaml.safe_load(text) if one != "correct"]
    assert [one for one in yaml.safe_load(changed) if one != "correct"] == before


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "a: 1\n",
        "s:\n- x\n- y\nb: 2\n",
        "s:\n  - x  # why\n  # more\nb: 2\n",
        "s: {a: 1, t: 2}\n",
        "s:\nb: 1\n",
        "s: |\n  long\n  text\nb: 1\n",
        "b: 1\n# the end",
    ],
)
def test_all_ways_to_write_yaml(text: str) -> None:
    before = yaml.safe_load(text)
    for place, value in ((("s",), [1]), (("b",), "x"), (("c", "d"), 3)):
        assert yaml.safe_load(recipe_text.put(text, place, value)) == before | (
            {"c": {"d": 3}} if place == ("c", "d") else {place[0]: value}
        )
        dropped = recipe_text.drop(text + ("" if len(before) > 1 else "\nz: 1\n"), place)
        assert place[0] not in yaml.safe_load(dropped)
    inside = yaml.safe_load(recipe_text.put("s: {a: 1}\n", ("s", "b"), 2))
    assert inside == {"s": {"a": 1, "b": 2}}


def test_a_section_goes_with_its_last_field() -> None:
    assert yaml.safe_load(recipe_text.drop("a: 1\ns:\n  t:\n    u: 1\n", ("s", "t", "u"))) == {
        "a": 1
    }
    assert recipe_text.drop("a: 1\n", ("b",)) == "a: 1\n"


def test_what_is_no_recipe_is_refused() -> None:
    for text in ("", "- 1", "a: [", "a: 1\na: 2"):
        with pytest.raises(RecipeError):
            recipe_text.put(text, ("a",), 1)
    with pytest.raises(RecipeError, match="is a value"):
        recipe_text.put("s: 1\n", ("s", "t"), 1)
