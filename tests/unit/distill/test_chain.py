"""A chain of assistants, and a student as large as its teacher: sizes, kills, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import digests_of
from potstill.core.stage import Context, Draft
from potstill.distill import DistillConfig, Distiller
from potstill.distill.config import StudentConfig
from potstill.errors import RecipeError, StoreError, TrainingError, UsageError
from potstill.models.load import load_model
from potstill.recipe import Recipe

Settings = Callable[..., dict[str, Any]]
Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
Drafts = Callable[[str], Draft]
ROWS = [
    {"context": f"Unit {n} holds {n} tons.", "question": f"{ask} tons?", "answer": f"{n}"}
    for n in range(4)
    for ask in ("How many", "What", "Which", "Of what", "How", "Why")
]


@pytest.fixture
def small(small: Settings) -> Settings:
    return partial(small, learning_rate=3e-3, patience=0)


@pytest.fixture
def chain_of(config_of: Configs) -> Configs:
    """chain_of(**changes) -> the config of a chain of two assistants."""
    return partial(
        config_of,
        ce_weight=0.01,  # a random teacher disagrees with the rows
        epochs=4,
        assistants=[{"parameters_ratio": 0.85, "max_tokens": 700}, {"parameters_ratio": 0.7}],
        student={"parameters_ratio": 0.55, "calibration_tokens": 64, "refit": False},
    )


def _layers(folder: Path) -> list[Any]:
    return [layer.mlp.up_proj.weight for layer in load_model(folder).model.layers]


@pytest.mark.whole
def test_each_link_is_cut_from_the_one_before_and_learns_from_it(
    chain_of: Configs, run_stage: Run, teacher_folder: Path
) -> None:
    draft = run_stage(chain_of())
    models = draft.data / "models"
    depths = {folder.name: len(_layers(folder)) for folder in models.iterdir()}
    assert depths == {
        "assistant-1": 3,
        "assistant-2": 2,
        "undistilled": 1,
        "distilled": 1,
        "finetuned": 1,
    }
    last = _layers(models / "assistant-2")
    assert any(_layers(models / "undistilled")[0].equal(layer) for layer in last)
    originals = _layers(teacher_folder)
    assert not any(layer.equal(one) for layer in last for one in originals)
    history = json.loads((draft.data / "history.json").read_text())
    assert list(history) == ["assistant-1", "assistant-2", "distilled", "finetuned"]
    trained = json.loads((draft.data / "training.json").read_text())["models"]
    assert trained["assistant-1"]["tokens"] < trained["assistant-2"]["tokens"]
    assert trained["assistant-1"]["tokens"] >= 700
    for name in ("assistant-1", "assistant-2"):
        first, final = history[name]["validation"][0], history[name]["validation"][-1]
        assert final["kl"] < first["kl"]
    assert not (draft.work / "assistant-1").exists()


@pytest.mark.slow
def test_a_chain_killed_in_every_link_ends_as_an_undisturbed_one(
    chain_of: Configs, run_stage: Run, kill_stage: Callable[..., None], make_draft: Drafts
) -> None:
    config = chain_of(epochs=2, checkpoint_minutes=1e-4)
    calm, killed = run_stage(config, "calm"), make_draft("killed")
    for link in ("assistant-1", "assistant-2"):
        kill_stage(config, killed, f"{link}/training")
    run_stage(config, "killed")
    names = ("models", "history.json", "surgery.json", "training.json")
    one, other = (
        {name: digest for name, digest in digests_of(draft.data).items() if name.startswith(names)}
        for draft in (calm, killed)
    )
    assert one == other


def test_a_finished_assistant_is_not_trained_again(
    chain_of: Configs,
    run_stage: Run,
    make_draft: Drafts,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from potstill.distill import chain, train

    draft, names = make_draft("draft"), []
    real = train.train_student

    def stopping(*args: Any, **settings: Any) -> Any:
        names.append(settings["name"])
        if names == ["assistant-1", "assistant-2"]:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(chain, "train_student", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage(chain_of())
    first = digests_of(draft.data / "models" / "assistant-1")
    again = Context(tmp_path, tmp_path, 7, 1, Emitter(tmp_path / "again.jsonl", "distill"))
    run_stage(chain_of(), context=again)
    assert names == ["assistant-1", "assistant-2", "assistant-2"]
    assert digests_of(draft.data / "models" / "assistant-1") == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"assistants": [{"parameters_ratio": 0.7}, {"parameters_ratio": 0.8}]}, "become smaller"),
        ({"assistants": [{"parameters_ratio": 0.5}]}, "become smaller"),
        ({"assistants": [{"parameters_ratio": 1.0}]}, "less than 1"),
        ({"student": {"drop_layers": 1}}, "not drop_layers"),
        ({"student": {"parameters_ratio": 0.5, "start": "uncorrected"}}, "not go together"),
    ],
)
def test_chains_that_make_no_sense_are_refused(
    chain_of: Configs, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        chain_of(**changes)


@pytest.mark.parametrize("axes", ["depth", "auto"])
def test_a_link_that_would_lose_nothing_is_refused_before_training(
    chain_of: Configs, run_stage: Run, axes: str
) -> None:
    near = [{"parameters_ratio": 0.7}, {"parameters_ratio": 0.699}]
    student = {"parameters_ratio": 0.55, "axes": axes}
    with pytest.raises(TrainingError, match=r"Assistant 2 with a parameters_ratio of 0\.699"):
        run_stage(chain_of(assistants=near, student=student), "a")
    student["parameters_ratio"] = 0.699
    config = chain_of(assistants=near[:1], student=student)
    with pytest.raises(TrainingError, match="The student with"):
        run_stage(config, "b")


def test_a_student_as_large_as_its_corrected_teacher_starts_from_the_original(
    small: Settings, teacher_folder: Path, tmp_path: Path
) -> None:
    settings = small(
        seed=3,
        student={"parameters_ratio": 1.0, "start": "uncorrected"},
        ce_weight=0.0,
    )
    correct = small(epochs=6, method="full")
    distiller = Distiller(str(teacher_folder), output=tmp_path / "o", correct=correct, **settings)
    distilled = distiller.train(ROWS)
    found = json.loads((tmp_path / "o" / "correction.json").read_text())
    assert found["kept"]
    assert (tmp_path / "o" / "teacher" / "model.safetensors").exists()
    start, *_, end = distilled.history["validation"]
    # It starts as far from the corrected teacher as the original is, and comes nearer.
    assert start["kl"] > 0.05
    assert end["kl"] < 0.8 * start["kl"]
    assert len(_layers(tmp_path / "o" / "model")) == 4
    with pytest.raises(StoreError, match=r"reads\.correct"):
        Distiller(str(teacher_folder), output=tmp_path / "o", **small(seed=3)).train(ROWS)


def test_a_student_that_is_its_teacher_learns_by_another_objective_or_says_so(
    small: Settings, teacher_folder: Path, tmp_path: Path
) -> None:
    whole = StudentConfig(parameters_ratio=1.0)
    same = Distiller(str(teacher_folder), whole, output=tmp_path / "a", **small(ce_weight=0.0))
    with pytest.raises(TrainingError, match="says what the teacher says"):
        same.train(ROWS)
    tied = Distiller(str(teacher_folder), whole, output=tmp_path / "b", **small(ce_weight=1.0))
    history = tied.train(ROWS).history["validation"]
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert history[-1]["ce_answer"] < history[0]["ce_answer"]


def test_a_chain_by_the_distiller(small: Settings, teacher_folder: Path, tmp_path: Path) -> None:
    distiller = Distiller(
        str(teacher_folder),
        {"parameters_ratio": 0.7, "calibration_tokens": 64},
        output=tmp_path / "o",
        assistants=[{"parameters_ratio": 0.85}],
        **small(),
    )
    distiller.train(ROWS)
    assert len(_layers(tmp_path / "o" / "assistants" / "assistant-1")) == 3
    assert len(_layers(tmp_path / "o" / "model")) == 2


def test_what_the_distiller_cannot_do_is_refused(teacher_folder: Path, tmp_path: Path) -> None:
    output, named = tmp_path / "o", str(teacher_folder)
    with pytest.raises(UsageError, match="is for a teacher that is corrected"):
        Distiller(named, {"start": "uncorrected"}, output=output)
    with pytest.raises(UsageError, match="there are no assistants"):
        Distiller(named, named, output=output, assistants=[{"parameters_ratio": 0.9}])
    with pytest.raises(UsageError, match="given by a reference"):
        Distiller(
            load_model(teacher_folder), named, output=output, tokenizer="t", correct={"epochs": 1}
        )


def test_a_recipe_whose_student_starts_uncorrected_needs_a_correction() -> None:
    recipe = {
        "name": "r",
        "teacher": "t",
        "ingest": {"sources": ["a.md"]},
        "distill": {"student": {"start": "uncorrected"}},
    }
    with pytest.raises(RecipeError, match=r"recipe: distill\.student\.start: uncorrected is for"):
        Recipe.from_dict(recipe)
    assert Recipe.from_dict({**recipe, "correct": {"method": "lora"}}).correct.teacher == "t"
    mixed = {**recipe, "correct": {"method": "lora"}, "evaluate": {"teacher": "other"}}
    with pytest.raises(RecipeError, match=r"evaluate\.teacher is other, but the first teacher of"):
        Recipe.from_dict(mixed)
    for teachers in ([], [{"weight": 2}, {"teacher": "other"}]):
        second = {
            **recipe,
            "correct": {"method": "lora", "teacher": "other"},
            "distill": {"teachers": teachers},
        }
        with pytest.raises(RecipeError, match=r"correct\.teacher is other, but the first teacher"):
            Recipe.from_dict(second)
    foreign = {**recipe, "distill": {"teachers": [{"teacher": "other"}]}}
    with pytest.raises(RecipeError, match=r"evaluate\.teacher is t, but the first teacher of dist"):
        Recipe.from_dict(foreign)
