"""A search over real stages with a four-layer teacher: figures, drafts, kill and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill import pipeline, sample
from potstill.core.events import read_events
from potstill.distill.outcome import student_outcome
from potstill.recipe import Recipe
from potstill.tune import Study, read_study, run_study


@pytest.fixture
def project(tmp_path: Path, small_recipe: dict[str, Any]) -> Path:
    """A folder with a small recipe and a study around it."""
    text = sample.sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:5000], "utf-8")
    training = {
        "student": {"drop_layers": 1, "method": "influence", "calibration_tokens": 64},
        "epochs": 1,
        "validations": 3,
    }
    recipe = small_recipe | {"distill": small_recipe["distill"] | training}
    study = {
        "name": "small",
        "recipe": "small.yaml",
        "search": {"distill.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "objective": {"validation_kl": "minimize"},
        "trials": 2,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), "utf-8")
    return tmp_path


@pytest.mark.whole
def test_the_best_recipe_goes_on_from_the_trials_student(project: Path) -> None:
    found = run_study(Study.load(project / "study.yaml", trials=1), project)
    best = found.best[0]
    assert len(best.curve) == 4
    # The trial did not train the model for comparison, and the stages before were done.
    events, _ = read_events(found.folder / "trials" / "0000" / "events.jsonl")
    kinds = {(event["stage"], event["kind"]) for event in events}
    assert ("generate", "skipped") in kinds
    assert ("distill", "finished") not in kinds

    run = pipeline.run(Recipe.load(found.recipes[0]), project, until="distill")
    artifact = run.artifact("distill")
    assert artifact.key == best.notes["draft"]
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    assert manifest["resumed"]
    outcome = student_outcome(artifact.folder)
    assert outcome.best["kl"] == best.figures["validation_kl"]
    assert outcome.parameters == best.notes["figures"]["parameters"]
    events, _ = read_events(run.events)
    trained = {event.get("model") for event in events if event["kind"] == "metric"}
    assert "finetuned" in trained
    assert "distilled" not in trained


@pytest.mark.slow
def test_spans_are_a_figure_where_training_compares_them(project: Path) -> None:
    data = yaml.safe_load((project / "study.yaml").read_text())
    data |= {"objective": {"validation_span_kl": "minimize"}, "trials": 1, "prune": {}}
    data["set"] = ["distill.alignment.method=spans"]
    (project / "study.yaml").write_text(yaml.safe_dump(data), "utf-8")
    found = run_study(Study.load(project / "study.yaml"), project)
    best = found.best[0]
    draft = pipeline.store_of(project).root / "distill" / f"{best.notes['draft']}.draft"
    outcome = student_outcome(draft)
    assert best.curve == [(row["step"], row["spans"]) for row in outcome.validation]
    assert best.figures["validation_span_kl"] == outcome.best["spans"]
    assert best.notes["figures"]["validation_bits_per_byte"] == outcome.best["bits_per_byte"]


@pytest.mark.slow
def test_figures_of_later_stages_are_read_from_them(project: Path) -> None:
    data = yaml.safe_load((project / "study.yaml").read_text())
    data |= {"objective": {"kl": "minimize", "seconds": "minimize"}, "trials": 1}
    (project / "study.yaml").write_text(yaml.safe_dump(data), "utf-8")
    found = run_study(Study.load(project / "study.yaml"), project)
    figures = found.trials[0].figures
    run = pipeline.run(Recipe.load(found.recipes[0]), project, until="evaluate")
    results = json.loads(run.artifact("evaluate").path("results.json").read_text())
    assert figures["kl"] == results["models"]["distilled"]["metrics"]["kl"]["value"]
    stage = run.record["stages"]["distill"]
    assert figures["seconds"] == pytest.approx(stage["seconds"], rel=0.2)
    assert found.trials[0].notes["figures"]["tokens_per_second"] > 0


def _command(project: Path) -> list[str]:
    base = [sys.executable, "-m", "potstill", "tune", str(project / "study.yaml")]
    return [*base, "--project", str(project)]


def _wait_for(process: Any, events: Path, words: str) -> None:
    while process.poll() is None and not (events.exists() and words in events.read_text()):
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_and_an_interrupted_search_go_on(project: Path) -> None:
    study = Study.load(project / "study.yaml")
    trials = project / "studies" / "small" / "trials"
    # A shell's background job ignores Ctrl-C, and so would what is started here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        first = subprocess.Popen(_command(project), start_new_session=True)
        _wait_for(first, trials / "0000" / "events.jsonl", '"validation_kl"')
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = subprocess.Popen(_command(project), stderr=subprocess.PIPE, text=True)
        _wait_for(second, trials / "0001" / "events.jsonl", '"validation_kl"')
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=120)
    finally:
        signal.signal(signal.SIGINT, before)
    assert second.returncode == 130
    assert "Stopped. The same command goes on from here." in said
    assert "Traceback" not in said
    left = read_study(study, project)
    assert [one.state for one in left.trials] == ["complete", "running"]
    done = subprocess.run(_command(project), check=True, capture_output=True, text=True)
    assert "potstill run" in done.stdout or "/potstill" in done.stdout
    found = read_study(study, project)
    assert [one.state for one in found.trials] == ["complete", "complete"]
    assert [len(one.curve) for one in found.trials] == [4, 4]
