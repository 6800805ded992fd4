"""What a search can change and can measure at all, judged by the recipes at its extremes.

In: the searched fields, the objective, recipes with the extreme values. Out: nothing, or one
RecipeError that names file and line. Starts nothing, and loads no model.

A field below a part of the recipe that is off in every trial changes no figure. A figure that the
stages will not have in some trial would only be missed after its training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from potstill.core.fields import Places
from potstill.errors import ModelError, RecipeError
from potstill.models.vocabulary import vocabulary_of
from potstill.recipe import Recipe
from potstill.tune.figures import FIGURES, WRITERS, Compared, Level

SWITCHES: dict[str, tuple[str, Callable[[Recipe], bool]]] = {
    "correct": ("correct.method is none", lambda recipe: recipe.correct.method != "none"),
    "correct.lora": ("correct.method is not lora", lambda recipe: recipe.correct.method == "lora"),
    "distill.lora": ("distill.adapter is none", lambda recipe: recipe.distill.adapter != "none"),
    "distill.on_policy": (
        "distill.on_policy.share is 0",
        lambda recipe: recipe.distill.on_policy.used,
    ),
    "distill.hidden": ("both of its weights are 0", lambda recipe: recipe.distill.hidden.used),
    "distill.attention": ("its weight is 0", lambda recipe: recipe.distill.attention.used),
}
"""Parts of a recipe that may be off: why they are, and whether they are on."""
OF_ANY_TASK = ("correct", "correct.lora")
HOW: dict[Compared, str] = {
    "tokens": "token by token, without distill.alignment",
    "spans": "span by span, with distill.alignment",
    "marks": "by the spans that they mark, with task: spans",
}


def check_fields(searched: Iterable[str], recipes: Sequence[Recipe], places: Places) -> None:
    """Errors: RecipeError for a field below a part that none of the recipes uses."""
    spans = any(one.task == "spans" for one in recipes)
    switches = {part: one for part, one in SWITCHES.items() if not spans or part in OF_ANY_TASK}
    for field in searched:
        for part, (why, is_on) in switches.items():
            if field.startswith(f"{part}.") and not any(map(is_on, recipes)):
                where = places.get(("search", field), "study")
                raise RecipeError(
                    f"{where}: search.{field} has no effect in any trial: {why}.",
                    "Switch it on in the recipe or under `set`, or search another field.",
                )


def check_objective(names: Iterable[str], recipes: Sequence[Recipe], places: Places) -> None:
    """Errors: RecipeError for a figure that does not exist in some trials, by their recipes."""
    spans = any(one.task == "spans" for one in recipes)
    for name in names:
        figure = FIGURES[name]
        ways = {way for one in recipes if (way := _compared(one, figure.level)) is not None}
        if _exists(name, ways, spans):
            continue
        where = places.get(("objective", name), "study")
        known = [
            other
            for other, one in FIGURES.items()
            if one.level == figure.level and _exists(other, ways, spans)
        ]
        raise RecipeError(
            f"{where}: objective.{name} cannot be measured in every trial: it is of models that "
            f"are compared {HOW[figure.compared or 'tokens']}.",
            f"Known here: {', '.join(known)}.",
        )


def _exists(name: str, ways: set[Compared], spans: bool) -> bool:
    """Whether the figure exists however the trials compare. spans: the recipes' task."""
    compared = FIGURES[name].compared
    if compared == "marks":
        return spans
    if compared is None:
        return not (spans and name in WRITERS)
    return ways <= {compared}


def _compared(recipe: Recipe, level: Level) -> Compared | None:
    """How the trial's figures of that level compare the student with its teacher.

    Training compares spans where the recipe says so; evaluation where the tokenizers differ, and a
    student that is cut from its teacher has its teacher's. None: not known before it is there.
    """
    if recipe.task == "spans":
        return "marks"
    config = recipe.distill
    if not config.alignment.used:
        return "tokens"
    if level != "evaluate":
        return "spans"
    if config.student.model is None:
        return "tokens"
    try:
        both = [vocabulary_of(one) for one in (config.voices[0].teacher, config.student.model)]
    except ModelError:
        return None  # the stage that reads it says what is wrong
    if None in both:
        return None
    return "tokens" if both[0] == both[1] else "spans"
