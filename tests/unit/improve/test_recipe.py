"""Every built-in recipe can be improved: its own, from the student that serves."""

from __future__ import annotations

import pytest

from potstill.improve.recipe import improved
from potstill.recipe import Recipe, builtin_recipes


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_is_improved_with_its_teacher_and_its_objective(name: str) -> None:
    recipe = Recipe.load(name)
    plain = recipe.model_dump(mode="json")
    made = improved(
        plain,
        name=f"{name}-2",
        student="/students/one",
        teacher="/teachers/corrected",
        rows=f"runs/{name}-2/improve",
        mask=True,
        parent=name,
    )
    assert plain == recipe.model_dump(mode="json")  # the run's own stays as it is
    new = Recipe.from_dict(made)
    assert type(new) is type(recipe)
    assert new.distill.student.model == "/students/one"
    assert new.correct.method == "none"
    assert new.evaluate.teacher == "/teachers/corrected"
    assert (new.ingest, new.generate) == (recipe.ingest, recipe.generate)
    assert (new.curate.prepared, new.curate.personal_data) == (f"runs/{name}-2/improve", "mask")
    assert not new.distill.baseline
    kept = {"teacher", "teachers", "student", "assistants", "baseline"}
    before, after = (one.distill.model_dump(exclude=kept) for one in (recipe, new))
    assert after == before
    changed = {"teacher", "max_examples"}
    assert new.evaluate.model_dump(exclude=changed) == recipe.evaluate.model_dump(exclude=changed)
    again = Recipe.from_dict(new.to_dict())
    assert again == new
