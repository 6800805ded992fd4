"""A recipe whose models are not here: a plan says everything, a run refuses in one line, and
nothing is begun by either."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill import pipeline
from potstill.core import machine
from potstill.errors import AbsentError, MachineError, ModelError, UnavailableError
from potstill.recipe import Recipe

PUBLISHED = {
    "name": "published",
    "teacher": "google/gemma-7b-it",
    "ingest": {"sources": ["notes.md"]},
    "distill": {
        "student": {"model": "google/gemma-2b-it"},
        "teacher_precision": "4bit",
        "adapter": "lora",
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    (tmp_path / "notes.md").write_text("The boiler of unit 7 holds 1250 litres.\n" * 200)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path


def potstill(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "potstill", *arguments, "--project", str(project)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_stage_is_estimated_and_what_is_in_the_way_is_said(project: Path) -> None:
    plan = pipeline.plan(Recipe.from_dict(PUBLISHED), project)
    assert [step.action for step in plan] == ["blocked"] + ["wait"] * 6
    for step in plan:
        assert step.estimate["seconds"] > 0
        assert step.estimate["memory_bytes"] > 0
    figures = {step.name: step.estimate for step in plan}
    assert figures["evaluate"]["memory_bytes"] > 4 * 8.5e9  # the whole teacher in float32
    assert figures["distill"]["parameters"] == 2_506_172_416
    lines = [one.message for one in plan.obstacles if isinstance(one, UnavailableError)]
    assert lines == [
        f"{name}: not cached here, and the hub cannot be reached (HF_HUB_OFFLINE is set)."
        for name in ("google/gemma-7b-it", "google/gemma-2b-it")
    ]
    assert [one.reference for one in plan.downloads] == ["google/gemma-7b-it", "google/gemma-2b-it"]


def test_the_commands(project: Path) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(PUBLISHED))
    planned = potstill(project, "plan", str(recipe))
    assert planned.returncode == 0, planned.stderr
    line = "google/gemma-7b-it: not cached here, and the hub cannot be reached (HF_HUB_OFFLINE is"
    assert "Downloads:" in planned.stdout
    assert "17.1 GB" in planned.stdout
    assert "In the way of a run:" in planned.stdout
    assert line in planned.stdout
    told = json.loads(potstill(project, "plan", str(recipe), "--json").stdout)
    assert {one["reference"]: one["gated"] for one in told["downloads"]} == {
        "google/gemma-7b-it": True,
        "google/gemma-2b-it": True,
    }
    assert [one["name"] for one in told["steps"]] == [stage.name for stage in pipeline.PIPELINE]
    assert told["obstacles"][0]["message"].startswith(line)
    refused = potstill(project, "run", str(recipe))
    assert refused.returncode == UnavailableError.exit_code
    assert refused.stderr.startswith(f"Error: {line}")
    assert "Traceback" not in refused.stderr
    assert sorted(one.name for one in project.iterdir()) == ["notes.md", "recipe.yaml"]


def test_files_that_are_still_to_come_are_said_and_reckoned_with(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    for source, assumed in (("rows.csv", "1,000 rows"), ("documents", "100 pages")):
        recipe = Recipe.from_dict(small_recipe | {"ingest": {"sources": [source]}})
        plan = pipeline.plan(recipe, project)
        assert plan.assumes == assumed
        assert [type(one) for one in plan.obstacles] == [AbsentError]
        assert all(step.estimate["seconds"] > 0 for step in plan)
        with pytest.raises(AbsentError, match=f"The source '{source}'"):
            pipeline.run(recipe, project)
    assert not (project / "runs").exists()


def test_a_machine_that_is_too_small_is_refused_unless_it_is_wanted_anyway(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(small_recipe)
    monkeypatch.setattr(machine, "most_memory_bytes", lambda: 100_000_000)
    monkeypatch.setattr(machine, "gpus", lambda: [])
    with pytest.raises(MachineError, match=r"ingest needs about 0\.8 GB of memory; this machine"):
        pipeline.run(recipe, project, until="ingest")
    assert not (project / "runs").exists()
    run = pipeline.run(recipe, project, until="ingest", anyway=True)
    assert list(run.record["stages"]) == ["ingest"]
    assert pipeline.run(recipe, project, until="ingest").record["stages"]["ingest"]["reused"]


def test_a_key_that_is_not_set_is_in_the_way_too(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "keys": ["NO_SUCH_KEY"]}
    asked = {"teacher": "openai:some-model", "endpoint": endpoint}
    recipe = Recipe.from_dict(small_recipe | {"generate": asked})
    plan = pipeline.plan(recipe, project)
    assert [one.message for one in plan.obstacles] == [
        "No key for http://127.0.0.1:9/v1: none of these environment variables is set: NO_SUCH_KEY."
    ]
    with pytest.raises(UnavailableError, match="NO_SUCH_KEY"):
        pipeline.run(recipe, project)
    assert not (project / "runs").exists()


def test_a_cut_that_cannot_be_is_known_from_the_catalogue(project: Path) -> None:
    cut = {"student": {"parameters": 1000}}
    recipe = Recipe.from_dict(PUBLISHED | {"distill": cut})
    with pytest.raises(ModelError, match=r"leaves 1,000 weights, but the smallest student"):
        pipeline.plan(recipe, project)
