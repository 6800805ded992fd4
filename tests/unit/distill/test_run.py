"""The distill stage on a tiny teacher: what it writes, that it learns, what a kill costs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import DistillConfig, StudentConfig
from potstill.distill.run import run
from potstill.errors import TrainingError
from potstill.models.load import load_model, load_tokenizer

Events = Callable[[], list[dict[str, Any]]]


def _config(teacher: Path, **changes: Any) -> DistillConfig:
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "student": StudentConfig(drop_layers=1, calibration_tokens=64, refit=False),
        "epochs": 6,
        "step_tokens": 200,
        "micro_tokens": 120,
        "sequence_tokens": 120,
        "learning_rate": 3e-3,
        "ce_weight": 0.01,  # a random teacher disagrees with the rows
        "validations": 3,
        "patience": 0,
        "precision": "fp32",
    }
    return DistillConfig(**(settings | changes))


def _weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_stage_writes_three_models_and_the_distilled_one_is_nearest_to_the_teacher(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
    events_of: Events,
) -> None:
    draft = make_draft("draft")
    run(_config(teacher_folder), stage_inputs, draft, context)

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


def test_nothing_but_paths_and_text_of_the_run_differs_between_two_runs(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    results = []
    for name in ("one", "two"):
        draft = make_draft(name)
        run(_config(teacher_folder, epochs=2), stage_inputs, draft, context)
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
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
    signal_name: str,
    tolerance: float,
) -> None:
    means, held_out = [], []
    for name in ("live", signal_name):
        draft = make_draft(name)
        config = _config(teacher_folder, epochs=3, signal=name, signal_count=64)
        run(config, stage_inputs, draft, context)
        assert json.loads((draft.data / "training.json").read_text())["signal"] == name
        assert (draft.work / "teacher-training").is_dir() == (name != "live")
        history = json.loads((draft.data / "history.json").read_text())["distilled"]
        means.append(sum(row["loss"] for row in history["steps"]) / len(history["steps"]))
        held_out.append(history["validation"][-1]["kl"])
    assert means[1] == pytest.approx(means[0], rel=tolerance)
    assert held_out[1] == pytest.approx(held_out[0], rel=min(tolerance, 0.1))


def test_auto_takes_a_file_where_rows_are_seen_again_and_it_is_small(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chosen(name: str, **settings: Any) -> str:
        draft = make_draft(name)
        run(_config(teacher_folder, **settings), stage_inputs, draft, context)
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
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
    batching: str,
    share: bool,
    layout: str,
) -> None:
    draft = make_draft("draft")
    config = _config(teacher_folder, epochs=3, batching=batching, share_beginnings=share)
    run(config, stage_inputs, draft, context)
    history = json.loads((draft.data / "history.json").read_text())["distilled"]
    counts = json.loads((draft.data / "training.json").read_text())
    assert counts["layout"] == layout
    assert history["steps"][-1]["tokens"] == 3 * counts["row_tokens"]
    assert (counts["computed_row_tokens"] < counts["row_tokens"]) == share
    assert history["validation"][-1]["kl"] < history["validation"][0]["kl"]


def test_the_student_gets_few_enough_parameters(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    draft = make_draft("ratio")
    student = StudentConfig(parameters_ratio=0.7, calibration_tokens=64, method="influence")
    run(_config(teacher_folder, student=student, epochs=1), stage_inputs, draft, context)
    surgery = json.loads((draft.data / "surgery.json").read_text())
    sizes = surgery["parameters"]
    assert sizes["student"] <= 0.7 * sizes["teacher"]
    one_layer = (sizes["teacher"] - sizes["student"]) / len(surgery["dropped"])
    assert sizes["student"] + one_layer > 0.7 * sizes["teacher"]


def test_adapters_are_merged_into_the_saved_model(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    draft = make_draft("lora")
    run(_config(teacher_folder, adapter="lora", learning_rate=1e-2), stage_inputs, draft, context)
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
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    draft = make_draft("frozen")
    config = _config(teacher_folder, freeze_embeddings=True, passages=True, epochs=2)
    run(config, stage_inputs, draft, context)
    models = draft.data / "models"
    ours = load_model(models / "distilled").state_dict()["model.embed_tokens.weight"]
    theirs = load_model(models / "undistilled").state_dict()["model.embed_tokens.weight"]
    assert torch.equal(ours, theirs)
    training = json.loads((draft.data / "training.json").read_text())
    assert training["rows"] == 8 + 4  # four chunks belong to training rows, two are held out


def test_rows_that_are_too_long_are_counted_and_said(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
    events_of: Events,
) -> None:
    draft = make_draft("short")
    train = stage_inputs["curate"].path("train.jsonl")
    row = json.loads(train.read_text().splitlines()[0])
    row["turns"][0]["content"] *= 5
    with train.open("a") as file:
        file.write(json.dumps(row) + "\n")
    run(_config(teacher_folder, epochs=1), stage_inputs, draft, context)
    assert json.loads((draft.data / "training.json").read_text())["truncated_rows"] == 1
    assert any("1 of 13 rows" in e["message"] for e in events_of() if e["kind"] == "warning")


def test_no_validation_rows_is_one_clear_error(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    stage_inputs["curate"].path("validation.jsonl").write_text("")
    with pytest.raises(TrainingError, match="0 validation rows"):
        run(_config(teacher_folder), stage_inputs, make_draft("empty"), context)


def test_a_learning_rate_that_explodes_names_step_and_rows(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
    context: Context,
) -> None:
    config = _config(teacher_folder, learning_rate=1.0, clip_norm=0, weight_decay=1.0, epochs=300)
    config = config.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"not a finite number at step \d+, rows row\d"):
        run(config, stage_inputs, make_draft("explode"), context)


DRIVER = """
import json, sys, pathlib, torch
from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import DistillConfig
from potstill.distill.run import run
job = json.loads(sys.argv[1])
inputs = {n: Artifact(n, "key", pathlib.Path(f), "digest") for n, f in job["inputs"].items()}
draft = Draft(pathlib.Path(job["draft"]))
here = pathlib.Path(job["draft"])
run(DistillConfig.model_validate(job["config"]), inputs, draft,
    Context(here, here, 7, 1, Emitter(here / "events.jsonl", "distill")))
"""


def test_killed_at_any_moment_the_stage_ends_in_the_same_bytes(
    teacher_folder: Path,
    stage_inputs: dict[str, Artifact],
    make_draft: Callable[[str], Draft],
) -> None:
    config = _config(teacher_folder, epochs=10, patience=2, checkpoint_minutes=1e-5)

    def start(draft: Draft) -> subprocess.Popen[bytes]:
        job = {
            "inputs": {name: str(one.folder) for name, one in stage_inputs.items()},
            "draft": str(draft.folder),
            "config": config.model_dump(mode="json"),
        }
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(job)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )

    whole = make_draft("whole")
    began = time.monotonic()
    process = start(whole)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    lasted = time.monotonic() - began
    broken = make_draft("broken")
    kills = 0
    for number in range(1, 5):
        process = start(broken)
        try:
            process.wait(lasted * (0.45 + 0.1 * number))
        except subprocess.TimeoutExpired:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(broken)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert kills
    for draft in (whole, broken):
        shutil.rmtree(draft.data / "tensorboard")
    assert digests_of(whole.data) == digests_of(broken.data)
