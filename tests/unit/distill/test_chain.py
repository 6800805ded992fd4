"""A chain of assistants, and a student as large as its teacher: sizes, kills, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import digests_of
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import DistillConfig, Distiller
from potstill.distill.config import StudentConfig
from potstill.distill.run import run
from potstill.errors import RecipeError, StoreError, TrainingError, UsageError
from potstill.models.load import load_model
from potstill.recipe import Recipe

Inputs = dict[str, Artifact]
Drafts = Callable[[str], Draft]
ROWS = [
    {"context": f"Unit {n} holds {n} tons.", "question": f"{ask} tons?", "answer": f"{n}"}
    for n in range(4)
    for ask in ("How many", "What", "Which", "Of what", "How", "Why")
]


def _settings(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "epochs": 2,
        "step_tokens": 200,
        "micro_tokens": 120,
        "sequence_tokens": 120,
        "learning_rate": 3e-3,
        "validations": 2,
        "patience": 0,
        "precision": "fp32",
    }
    return settings | changes


def _chain(teacher: Path, **changes: Any) -> DistillConfig:
    chain: dict[str, Any] = {
        "ce_weight": 0.01,  # a random teacher disagrees with the rows
        "epochs": 4,
        "assistants": [{"parameters_ratio": 0.85, "max_tokens": 700}, {"parameters_ratio": 0.7}],
        "student": {"parameters_ratio": 0.55, "calibration_tokens": 64, "refit": False},
    }
    return DistillConfig(**_settings(teacher=str(teacher), **(chain | changes)))


def _layers(folder: Path) -> list[Any]:
    return [layer.mlp.up_proj.weight for layer in load_model(folder).model.layers]


def test_each_link_is_cut_from_the_one_before_and_learns_from_it(
    teacher_folder: Path, stage_inputs: Inputs, make_draft: Drafts, context: Context
) -> None:
    draft = make_draft("draft")
    run(_chain(teacher_folder), stage_inputs, draft, context)
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


KILLED = """
import sys
from pathlib import Path
from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import DistillConfig
from potstill.distill.run import run

here = Path(sys.argv[1])
inputs = {
    name: Artifact(name, "key", here / name, "digest") for name in ("ingest", "curate", "correct")
}
run(DistillConfig.model_validate_json(sys.argv[2]), inputs, Draft(here / "killed"),
    Context(here, here, 7, 1, Emitter(here / "killed.jsonl", "distill")))
"""


@pytest.mark.slow
def test_a_chain_killed_in_every_link_ends_as_an_undisturbed_one(
    teacher_folder: Path,
    stage_inputs: Inputs,
    make_draft: Drafts,
    context: Context,
    tmp_path: Path,
) -> None:
    config = _chain(teacher_folder, epochs=2, checkpoint_minutes=1e-4)
    calm, killed = make_draft("calm"), make_draft("killed")
    run(config, stage_inputs, calm, context)
    command = [sys.executable, "-c", KILLED, str(tmp_path), config.model_dump_json()]
    for mark in ("assistant-1/training", "assistant-2/training"):
        process = subprocess.Popen(command)
        found = killed.work / mark
        while process.poll() is None and not list(found.glob("checkpoint-*/complete.json")):
            time.sleep(0.01)
        assert process.poll() is None, f"ended before {mark}"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run(config, stage_inputs, killed, context)
    names = ("models", "history.json", "surgery.json", "training.json")
    one, other = (
        {name: digest for name, digest in digests_of(draft.data).items() if name.startswith(names)}
        for draft in (calm, killed)
    )
    assert one == other


def test_a_finished_assistant_is_not_trained_again(
    teacher_folder: Path,
    stage_inputs: Inputs,
    make_draft: Drafts,
    context: Context,
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
        run(_chain(teacher_folder), stage_inputs, draft, context)
    first = digests_of(draft.data / "models" / "assistant-1")
    again = Context(tmp_path, tmp_path, 7, 1, Emitter(tmp_path / "again.jsonl", "distill"))
    run(_chain(teacher_folder), stage_inputs, draft, again)
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
def test_chains_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _chain(Path("t"), **changes)


def test_a_link_that_would_lose_no_layer_is_refused_before_training(
    teacher_folder: Path, stage_inputs: Inputs, make_draft: Drafts, context: Context
) -> None:
    near = [{"parameters_ratio": 0.7}, {"parameters_ratio": 0.699}]
    with pytest.raises(TrainingError, match=r"Assistant 2 with a parameters_ratio of 0\.699"):
        run(_chain(teacher_folder, assistants=near), stage_inputs, make_draft("a"), context)
    student = {"parameters_ratio": 0.699}
    config = _chain(teacher_folder, assistants=near[:1], student=student)
    with pytest.raises(TrainingError, match="The student with"):
        run(config, stage_inputs, make_draft("b"), context)


def test_a_student_as_large_as_its_corrected_teacher_starts_from_the_original(
    teacher_folder: Path, tmp_path: Path
) -> None:
    settings = _settings(
        seed=3,
        student={"parameters_ratio": 1.0, "start": "uncorrected"},
        ce_weight=0.0,
    )
    correct = _settings(epochs=6, method="full")
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
        Distiller(str(teacher_folder), output=tmp_path / "o", **_settings(seed=3)).train(ROWS)


def test_a_student_that_is_its_teacher_learns_by_another_objective_or_says_so(
    teacher_folder: Path, tmp_path: Path
) -> None:
    whole = StudentConfig(parameters_ratio=1.0)
    same = Distiller(str(teacher_folder), whole, output=tmp_path / "a", **_settings(ce_weight=0.0))
    with pytest.raises(TrainingError, match="says what the teacher says"):
        same.train(ROWS)
    tied = Distiller(str(teacher_folder), whole, output=tmp_path / "b", **_settings(ce_weight=1.0))
    history = tied.train(ROWS).history["validation"]
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert history[-1]["ce_answer"] < history[0]["ce_answer"]


def test_a_chain_by_the_distiller(teacher_folder: Path, tmp_path: Path) -> None:
    distiller = Distiller(
        str(teacher_folder),
        {"parameters_ratio": 0.7, "calibration_tokens": 64},
        output=tmp_path / "o",
        assistants=[{"parameters_ratio": 0.85}],
        **_settings(),
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
    with pytest.raises(RecipeError, match=r"evaluate\.teacher is other, but distill\.teacher is t"):
        Recipe.from_dict(mixed)
    idle = {**recipe, "correct": {"method": "lora", "teacher": "other"}}
    with pytest.raises(RecipeError, match=r"correct\.teacher is other, but distill is taught by t"):
        Recipe.from_dict(idle)
