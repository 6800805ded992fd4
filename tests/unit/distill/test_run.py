"""The distill stage on a tiny teacher: what it writes, that it learns, what a kill costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.core.stage import Artifact, Draft
from potstill.distill import DistillConfig, StudentConfig
from potstill.errors import TrainingError
from potstill.models.load import load_model, load_tokenizer

Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    return partial(
        config_of,
        student=StudentConfig(drop_layers=1, calibration_tokens=64, refit=False),
        epochs=6,
        learning_rate=3e-3,
        ce_weight=0.01,  # a random teacher disagrees with the rows
        validations=3,
        patience=0,
    )


def test_the_stage_writes_three_models_and_the_distilled_one_is_nearest_to_the_teacher(
    config_of: Configs, run_stage: Run, events_of: Events
) -> None:
    draft = run_stage(config_of())

    models = draft.data / "models"
    assert sorted(path.name for path in models.iterdir()) == [
        "distilled",
        "finetuned",
        "undistilled",
    ]
    for folder in models.iterdir():
        model = load_model(folder)
        assert model.config.num_hidden_layers == 3
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True
        assert (folder / "generation_config.json").exists()
        assert load_tokenizer(folder).chat_template

    history = json.loads((draft.data / "history.json").read_text())
    start, end = (history["distilled"]["validation"][place] for place in (0, -1))
    assert start["step"] == 0
    assert end["kl"] < 0.7 * start["kl"]
    assert end["kl"] < 0.7 * history["finetuned"]["validation"][-1]["kl"]
    assert end["agreement"] > start["agreement"]
    tuned = history["finetuned"]["validation"]
    assert tuned[-1]["ce"] < tuned[0]["ce"]
    assert "kd" not in history["finetuned"]["steps"][0]
    for name in ("distilled", "finetuned"):
        assert [row["tokens"] for row in history[name]["steps"]] == [
            row["tokens"] for row in history["distilled"]["steps"]
        ]

    surgery = json.loads((draft.data / "surgery.json").read_text())
    assert len(surgery["dropped"]) == 1
    assert surgery["parameters"]["student"] < surgery["parameters"]["teacher"]
    training = json.loads((draft.data / "training.json").read_text())
    assert training["rows"] == 8
    assert training["models"]["distilled"]["tokens"] == training["models"]["finetuned"]["tokens"]
    assert list((draft.data / "tensorboard" / "distilled").iterdir())
    names = {event["name"] for event in events_of() if event["kind"] == "metric"}
    assert {"loss", "kd", "ce", "grad_norm", "learning_rate", "tokens_per_second"} <= names
    assert "validation_kl" in names
    assert {event["step"] for event in events_of() if event["kind"] == "progress"} >= {
        "surgery",
        "distilled",
        "finetuned",
    }


def test_without_a_baseline_the_rows_alone_are_not_learned(
    config_of: Configs, run_stage: Run, events_of: Events
) -> None:
    draft = run_stage(config_of(epochs=1, baseline=False))
    assert {path.name for path in (draft.data / "models").iterdir()} == {"distilled", "undistilled"}
    assert list(json.loads((draft.data / "history.json").read_text())) == ["distilled"]
    assert "finetuned" not in {
        event["step"] for event in events_of() if event["kind"] == "progress"
    }


def test_nothing_but_paths_and_text_of_the_run_differs_between_two_runs(
    config_of: Configs, run_stage: Run
) -> None:
    results = []
    for name in ("one", "two"):
        draft = run_stage(config_of(epochs=2), name)
        shutil.rmtree(draft.data / "tensorboard")
        results.append(digests_of(draft.data))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("signal_name", "tolerance"),
    # This random teacher is flat: 64 of its 400 words leave a third of the mass to the others, so
    # what they say of the first step is a third less. Samples are right on the average alone.
    [("hidden_bf16", 0.02), ("hidden_int8", 0.05), ("top_k", 0.3), ("sampled", 0.3)],
)
def test_signals_from_files_train_like_the_live_teacher(
    config_of: Configs, run_stage: Run, signal_name: str, tolerance: float
) -> None:
    means, held_out = [], []
    for name in ("live", signal_name):
        draft = run_stage(config_of(epochs=3, signal=name, signal_count=64), name)
        assert json.loads((draft.data / "training.json").read_text())["signal"] == name
        assert (draft.work / "teacher-training").is_dir() == (name != "live")
        history = json.loads((draft.data / "history.json").read_text())["distilled"]
        means.append(sum(row["loss"] for row in history["steps"]) / len(history["steps"]))
        held_out.append(history["validation"][-1]["kl"])
    assert means[1] == pytest.approx(means[0], rel=tolerance)
    assert held_out[1] == pytest.approx(held_out[0], rel=min(tolerance, 0.1))


def test_auto_takes_a_file_where_rows_are_seen_again_and_it_is_small(
    config_of: Configs, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(name: str, **settings: Any) -> str:
        draft = run_stage(config_of(**settings), name)
        return str(json.loads((draft.data / "training.json").read_text())["signal"])

    assert chosen("once", epochs=1) == "live"
    assert chosen("again", epochs=2) == "hidden_bf16"
    monkeypatch.setattr("potstill.distill.signals.LARGEST_CACHE", 1000)
    assert chosen("large", epochs=2) == "live"


@pytest.mark.parametrize(
    ("batching", "share", "layout"),
    [("auto", True, "packed"), ("packed", False, "packed"), ("buckets", True, "buckets")],
)
def test_both_layouts_train_the_same_rows(
    config_of: Configs, run_stage: Run, batching: str, share: bool, layout: str
) -> None:
    draft = run_stage(config_of(epochs=3, batching=batching, share_beginnings=share))
    history = json.loads((draft.data / "history.json").read_text())["distilled"]
    counts = json.loads((draft.data / "training.json").read_text())
    assert counts["layout"] == layout
    assert history["steps"][-1]["tokens"] == 3 * counts["row_tokens"]
    assert (counts["computed_row_tokens"] < counts["row_tokens"]) == share
    assert history["validation"][-1]["kl"] < history["validation"][0]["kl"]


def test_the_student_gets_few_enough_parameters(config_of: Configs, run_stage: Run) -> None:
    student = StudentConfig(parameters_ratio=0.7, calibration_tokens=64, method="influence")
    draft = run_stage(config_of(student=student, epochs=1))
    surgery = json.loads((draft.data / "surgery.json").read_text())
    sizes = surgery["parameters"]
    assert sizes["student"] <= 0.7 * sizes["teacher"]
    one_layer = (sizes["teacher"] - sizes["student"]) / len(surgery["dropped"])
    assert sizes["student"] + one_layer > 0.7 * sizes["teacher"]


def test_adapters_are_merged_into_the_saved_model(config_of: Configs, run_stage: Run) -> None:
    draft = run_stage(config_of(adapter="lora", learning_rate=1e-2))
    folder = draft.data / "models" / "distilled"
    assert not (folder / "adapter_config.json").exists()
    distilled, undistilled = load_model(folder), load_model(draft.data / "models" / "undistilled")
    ours, theirs = distilled.state_dict(), undistilled.state_dict()
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours[name], theirs[name])
    history = json.loads((draft.data / "history.json").read_text())["distilled"]["validation"]
    assert history[-1]["kl"] < history[0]["kl"]


def test_frozen_embeddings_stay_as_they_are_and_passages_are_trained_too(
    config_of: Configs, run_stage: Run
) -> None:
    draft = run_stage(config_of(freeze_embeddings=True, passages=True, epochs=2))
    models = draft.data / "models"
    ours = load_model(models / "distilled").state_dict()["model.embed_tokens.weight"]
    theirs = load_model(models / "undistilled").state_dict()["model.embed_tokens.weight"]
    assert torch.equal(ours, theirs)
    training = json.loads((draft.data / "training.json").read_text())
    assert training["rows"] == 8 + 4  # four chunks belong to training rows, two are held out


def test_rows_that_are_too_long_are_counted_and_said(
    config_of: Configs, run_stage: Run, stage_inputs: dict[str, Artifact], events_of: Events
) -> None:
    train = stage_inputs["curate"].path("train.jsonl")
    row = json.loads(train.read_text().splitlines()[0])
    row["turns"][0]["content"] *= 5
    with train.open("a") as file:
        file.write(json.dumps(row) + "\n")
    draft = run_stage(config_of(epochs=1))
    assert json.loads((draft.data / "training.json").read_text())["truncated_rows"] == 1
    assert any("1 of 13 rows" in e["message"] for e in events_of() if e["kind"] == "warning")


def test_no_validation_rows_is_one_clear_error(
    config_of: Configs, run_stage: Run, stage_inputs: dict[str, Artifact]
) -> None:
    stage_inputs["curate"].path("validation.jsonl").write_text("")
    with pytest.raises(TrainingError, match="0 validation rows"):
        run_stage(config_of())


def test_a_learning_rate_that_explodes_names_step_and_rows(
    config_of: Configs, run_stage: Run
) -> None:
    config = config_of(learning_rate=1.0, clip_norm=0, weight_decay=1.0, epochs=300)
    config = config.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"not a finite number at step \d+, rows row\d"):
        run_stage(config)


@pytest.mark.whole
def test_killed_at_any_moment_the_stage_ends_in_the_same_bytes(
    config_of: Configs,
    start_stage: Callable[..., Any],
    make_draft: Callable[[str], Draft],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = config_of(epochs=10, patience=2, checkpoint_minutes=1e-5)
    whole = make_draft("whole")
    began = time.monotonic()
    assert start_stage(config, whole).wait() == 0
    lasted = time.monotonic() - began
    broken = make_draft("broken")
    kills = 0
    for number in range(1, 5):
        process = start_stage(config, broken)
        try:
            process.wait(lasted * (0.45 + 0.1 * number))
        except subprocess.TimeoutExpired:
            kills += 1
        process.kill()
        process.wait()
    assert start_stage(config, broken).wait() == 0
    assert kills
    for draft in (whole, broken):
        shutil.rmtree(draft.data / "tensorboard")
    assert digests_of(whole.data) == digests_of(broken.data)
