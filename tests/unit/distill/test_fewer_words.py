"""A student of fewer words: cut from a copy of its teacher that has as few, to its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.core.stage import Draft
from potstill.distill import DistillConfig, Distiller
from potstill.distill.plan import facts
from potstill.errors import ModelError, UsageError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import parameters_of

Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
SMALL: dict[str, Any] = {"calibration_tokens": 64, "fit_tokens": 256, "candidates": 1}


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    return partial(config_of, learning_rate=3e-3, ce_weight=0.01, patience=0)


def test_the_size_is_a_share_of_the_whole_teacher_and_the_words_count_towards_it(
    config_of: Configs, run_stage: Run, teacher: Any, tokenizer: Any
) -> None:
    student = SMALL | {"vocabulary": 340, "parameters_ratio": 0.99}
    draft = run_stage(config_of(student=student, passages=True, epochs=6))

    models = draft.data / "models"
    found = load_model(models / "distilled")
    whole, words = parameters_of(teacher), len(tokenizer)
    without = whole - (words - 340) * teacher.config.hidden_size
    assert without < 0.99 * whole  # the words alone are enough here: nothing else goes
    assert parameters_of(found) == without
    for name in ("distilled", "finetuned", "undistilled"):
        assert len(load_tokenizer(models / name)) == 340
        assert load_tokenizer(models / name).chat_template == tokenizer.chat_template
    told = json.loads((draft.data / "surgery.json").read_text())
    assert told["vocabulary"] == {"kept": 340, "of": words}
    assert told["parameters"] == {"teacher": whole, "student": without}
    history = json.loads((draft.data / "history.json").read_text())["distilled"]["validation"]
    assert history[0]["kl"] < 1e-3  # it is the teacher with fewer words, and nothing else is cut


def test_what_the_words_do_not_save_goes_elsewhere(
    config_of: Configs, run_stage: Run, teacher: Any
) -> None:
    student = SMALL | {"vocabulary": 340, "parameters_ratio": 0.6, "axes": "depth"}
    draft = run_stage(config_of(student=student))
    found = load_model(draft.data / "models" / "distilled")
    assert parameters_of(found) <= 0.6 * parameters_of(teacher)
    assert found.config.num_hidden_layers < 4
    history = json.loads((draft.data / "history.json").read_text())["distilled"]["validation"]
    assert history[-1]["kl"] < history[0]["kl"]


def test_a_killed_run_goes_on_with_the_copy_it_made(config_of: Configs, run_stage: Run) -> None:
    student = SMALL | {"vocabulary": 340}
    first = run_stage(config_of(student=student))
    kept = first.work / "teacher.json"
    stamp = kept.stat().st_mtime_ns
    run_stage(config_of(student=student))
    assert kept.stat().st_mtime_ns == stamp


def test_fewer_words_than_the_rows_have(
    config_of: Configs, run_stage: Run, events_of: Callable[[], list[dict[str, Any]]]
) -> None:
    draft = run_stage(config_of(student=SMALL | {"vocabulary": 256}))
    kept = len(load_tokenizer(draft.data / "models" / "distilled"))
    said = [one["message"] for one in events_of() if one["kind"] == "warning"]
    assert any(f"The rows need {kept} tokens" in one and "not 256" in one for one in said)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"assistants": [{"parameters_ratio": 0.97}]}, "assistants"),
        ({"alignment": {"method": "spans"}}, "alignment"),
        ({"teachers": [{"teacher": "a"}, {"teacher": "b"}]}, "several teachers"),
        ({"student": {"vocabulary": 300, "drop_layers": 1}}, "drop_layers"),
        ({"student": {"vocabulary": 300, "start": "uncorrected"}}, "start: uncorrected"),
        ({"student": {"vocabulary": 300, "model": "other"}}, "is not cut"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        DistillConfig(**({"teacher": "t", "student": {"vocabulary": 300}} | changes))


def test_a_distiller_is_told_how(teacher_folder: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="recipe's"):
        Distiller(teacher_folder, {"vocabulary": 300}, output=tmp_path / "out")


def test_a_plan_counts_the_words_that_go_before_it_says_that_no_cut_is_small_enough(
    teacher_folder: Any, teacher: Any, tmp_path: Any
) -> None:
    words = teacher.get_input_embeddings().weight.numel()
    layer = sum(one.numel() for one in teacher.model.layers[0].parameters())
    ratio = (words + layer) / parameters_of(teacher)  # one layer and all words: a norm too little
    asked = {"teacher": str(teacher_folder), "student": {"axes": "depth"}}
    asked["student"]["parameters_ratio"] = ratio
    with pytest.raises(ModelError, match="smallest student"):
        facts(DistillConfig(**asked), tmp_path)
    asked["student"]["vocabulary"] = 256
    assert set(facts(DistillConfig(**asked), tmp_path)) == {"teacher"}
