"""All stages with a fake writer and a four-layer teacher: results, reuse, kill and resume."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill import pipeline
from potstill.core.events import read_events
from potstill.disagreeing import disagreement_on
from potstill.errors import StoreError
from potstill.recipe import Recipe

PLANTED = "planted-secret-5b1f7c"
SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "ANY_PASSWORD")


@pytest.fixture
def small_recipe(small_recipe: dict[str, Any]) -> dict[str, Any]:
    """It exports one small file too."""
    measured = {"max_examples": 2, "quantisations": ["q8_0"]}
    return small_recipe | {"export": small_recipe["export"] | measured}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from potstill.sample import sample_path

    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    return tmp_path


@pytest.mark.whole
def test_a_whole_run_leaves_report_files_and_reusable_stages(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, PLANTED)
    recipe = Recipe.from_dict(small_recipe)
    fresh = {step.name: step.estimate for step in pipeline.plan(recipe, project)}
    assert all(costs["seconds"] > 0 and costs["memory_bytes"] > 0 for costs in fresh.values())
    assert fresh["generate"]["requests"] > 0
    assert fresh["distill"]["tokens"] > 0
    seen: list[dict[str, Any]] = []
    run = pipeline.run(recipe, project, watch=seen.append)

    report = run.report
    assert "correct" not in report["stages"]  # it is off
    models = report["models"]
    assert set(models) >= {"teacher", "undistilled", "finetuned", "distilled", "gguf-f16"}
    assert models["distilled"]["parameters"] < models["teacher"]["parameters"]
    for name in ("undistilled", "finetuned", "distilled"):
        kl = models[name]["metrics"]["kl"]
        assert kl["low"] <= kl["value"] <= kl["high"]
    summary = json.loads(run.artifact("curate").path("summary.json").read_text())
    assert summary["input"] == sum(summary["kept"].values()) + sum(summary["rejected"].values())
    assert (run.folder / "report.html").read_text("utf-8").startswith("<!")
    card = (run.folder / "data-card.html").read_text("utf-8")
    assert card == run.artifact("curate").path("card.html").read_text("utf-8")
    assert run.exported().suffix == ".gguf"
    for passages in (True, False):
        told = disagreement_on(run, "Who keeps the key?", "Tove Lind", passages=passages)
        assert "".join(one.text for one in told).startswith("Tove Lind")
        assert all(one.kl >= -1e-6 and 0 <= one.probability <= 1 for one in told)
    assert {event["kind"] for event in seen} >= {"started", "finished", "progress", "metric"}
    assert pipeline.verify(run) == {stage.name: [] for stage in pipeline.PIPELINE}

    written = [path for path in project.rglob("*") if path.is_file()]
    assert run.folder / "report.html" in written
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []

    again = pipeline.plan(recipe, project)
    assert {step.action for step in again} == {"reuse"}
    changed = Recipe.from_dict({**small_recipe, "curate": {"support": 0.9}})
    actions = {step.name: (step.action, step.reason) for step in pipeline.plan(changed, project)}
    assert actions["generate"][0] == "reuse"
    assert actions["curate"] == ("run", "changed: support")

    shutil.rmtree(run.artifact("evaluate").folder)
    before = {name: stage["digest"] for name, stage in run.record["stages"].items()}
    repeated = pipeline.run(recipe, project)
    after = {name: stage["digest"] for name, stage in repeated.record["stages"].items()}
    for name in ("ingest", "generate", "curate", "distill"):
        assert before[name] == after[name]

    # A run that fails leaves the record of what was finished before it.
    rows = run.artifact("generate").path("examples.jsonl")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-9])
    with pytest.raises(StoreError, match="is damaged"):
        pipeline.run(recipe, project)
    assert list(run.record["stages"]) == [stage.name for stage in pipeline.PIPELINE]
    assert [name for name, wrong in pipeline.verify(run).items() if wrong] == ["generate"]
    rows.write_bytes(whole)


@pytest.mark.whole
def test_a_corrected_teacher_teaches_and_is_measured_beside_the_original(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    rows = {name: small_recipe["distill"][name] for name in ("step_tokens", "micro_tokens")}
    correct = {"method": "full", "learning_rate": 3e-3, "sequence_tokens": 512, **rows}
    recipe = Recipe.from_dict(small_recipe | {"correct": correct})
    run = pipeline.run(recipe, project)

    report = run.report
    assert report["correction"]["kept"]
    assert list(report["models"])[:2] == ["teacher", "uncorrected"]
    kl = {name: model["metrics"]["kl"]["value"] for name, model in report["models"].items()}
    assert kl["teacher"] == 0.0 < kl["uncorrected"]
    perplexity = {
        name: report["models"][name]["metrics"]["perplexity"]["value"]
        for name in ("teacher", "uncorrected")
    }
    assert perplexity["teacher"] < perplexity["uncorrected"]
    assert report["stages"]["correct"]["seconds"] > 0
    assert "Teacher, uncorrected" in (run.folder / "report.html").read_text("utf-8")
    assert run.artifact("correct").path("model").is_dir()

    # Other settings of distillation do not train the teacher again; other rows do.
    longer = Recipe.from_dict(
        small_recipe | {"correct": correct, "distill": small_recipe["distill"] | {"epochs": 3}}
    )
    actions = {step.name: step.action for step in pipeline.plan(longer, project)}
    assert (actions["correct"], actions["distill"]) == ("reuse", "run")
    stricter = Recipe.from_dict(small_recipe | {"correct": correct, "curate": {"support": 0.9}})
    assert pipeline.plan(stricter, project)[3].action == "wait"


def test_ctrl_c_says_that_the_same_command_goes_on(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    (project / "recipe.yaml").write_text(yaml.safe_dump(small_recipe), "utf-8")
    command = [sys.executable, "-m", "potstill", "run", str(project / "recipe.yaml")]
    # A shell's background job ignores Ctrl-C, and so would what is started here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--project", str(project)], stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    events = project / "runs" / "small" / "events.jsonl"
    while process.poll() is None and not (events.exists() and "started" in events.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. The same command goes on from here." in said
    assert "Traceback" not in said


def outcome(project: Path) -> tuple[dict[str, str], Any, dict[str, str]]:
    """Digests of the data stages, the loss curves, and the final weights' hashes."""
    record = json.loads((project / "runs" / "small" / "run.json").read_text())
    data = {name: record["stages"][name]["digest"] for name in ("ingest", "generate", "curate")}
    folder = project / "store" / "distill" / record["stages"]["distill"]["key"]
    history = json.loads((folder / "data" / "history.json").read_text())
    files = json.loads((folder / "manifest.json").read_text())["files"]
    weights = {name: one["sha256"] for name, one in files.items() if name.endswith(".safetensors")}
    return data, history, weights


def runs_started(diary: Path) -> int:
    """How often the diary says that a run began."""
    events, _ = read_events(diary)
    return sum(event["kind"] == "run_started" for event in events)


@pytest.mark.whole
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(
    project: Path, small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    calm, killed = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("killed")
    for folder in (calm, killed):
        shutil.copy(project / "notes.md", folder / "notes.md")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(small_recipe), "utf-8")

    def command(folder: Path) -> list[str]:
        options = ["--project", str(folder), "--until", "distill"]
        base = [sys.executable, "-m", "potstill", "run", str(folder / "recipe.yaml")]
        return [*base, *options]

    subprocess.run(command(calm), check=True, capture_output=True, timeout=240)
    lot = random.Random(5)
    kills = starts = 0
    diary = killed / "runs" / "small" / "events.jsonl"
    for _ in range(12):
        process = subprocess.Popen(
            command(killed),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and runs_started(diary) == starts:
            time.sleep(0.05)  # a moment counts from the run's own start, however busy the machine
        starts += 1
        try:
            process.wait(timeout=lot.uniform(0.3, 15.0 if kills >= 2 else 2.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2
    subprocess.run(command(killed), check=True, capture_output=True, timeout=240)

    assert outcome(killed) == outcome(calm)
    assert runs_started(diary) == starts + 1
