"""A run with a plug-in of every kind; a changed one makes its stage run again, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_packages import on_the_path, write_example
from typer.testing import CliRunner

from potstill import pipeline, sample
from potstill.cli import app
from potstill.core import plugins
from potstill.core.files import read_records
from potstill.errors import PluginError
from potstill.recipe import Recipe
from potstill.records import Document, Rejected

ALL = {
    "ingest": {"readers": [{"name": "subtitles", "options": {"cues": 4}}]},
    "generate": {"teacher": "plugin:quoting", "backend": "auto"},
    "curate": {"filters": [{"name": "shouting", "options": {"share": 0.03}}]},
    "distill": {"divergence": {"plugin:hellinger": 0.5, "forward_kl": 0.5}},
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    folder = write_example(tmp_path / "site")
    with on_the_path(folder):
        yield folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A handbook as subtitles, a sentence a cue."""
    folder = tmp_path / "project"
    folder.mkdir()
    text = sample.sample_path("handbook.md").read_text("utf-8")[:3000]
    sentences = [one.strip() for one in text.replace("\n", " ").split(". ") if one.strip()]
    cues = [
        f"{number}\n00:00:{number % 60:02},000 --> 00:00:{number % 60:02},900\n{one}.\n"
        for number, one in enumerate(sentences, 1)
    ]
    (folder / "notes.srt").write_text("\n".join(cues), "utf-8")
    return folder


def recipe_of(small_recipe: dict[str, Any]) -> Recipe:
    given = {name: {**small_recipe.get(name, {}), **section} for name, section in ALL.items()}
    given["ingest"]["sources"] = ["notes.srt"]
    given["distill"]["epochs"] = 1
    return Recipe.from_dict({**small_recipe, **given})


def actions(recipe: Recipe, project: Path) -> dict[str, tuple[str, str]]:
    return {step.name: (step.action, step.reason) for step in pipeline.plan(recipe, project)}


@pytest.mark.whole
def test_a_run_with_plug_ins_of_every_kind(
    site: Path, project: Path, small_recipe: dict[str, Any]
) -> None:
    recipe = recipe_of(small_recipe)
    run = pipeline.run(recipe, project, until="distill")

    (document,) = read_records(run.artifact("ingest").path("documents.jsonl"), Document)
    assert document.source == "notes.srt"
    assert "-->" not in document.text
    summary = json.loads(run.artifact("curate").path("summary.json").read_text())
    assert summary["rejected"]["shouting.capitals"] > 0
    reasons = {
        one.reason for one in read_records(run.artifact("curate").path("rejected.jsonl"), Rejected)
    }
    assert "shouting.capitals" in reasons
    assert actions(recipe, project)["distill"][0] == "reuse"

    for file, stage in (("hellinger", "distill"), ("shouting", "curate"), ("subtitles", "ingest")):
        source = site / "potstill_example" / f"{file}.py"
        source.write_text(source.read_text().replace('version = "1"', 'version = "2"'))
        with on_the_path(site):  # as a new process finds it
            found = actions(recipe, project)
        assert found[stage][0] == "run"
        assert file in found[stage][1]


def test_a_plug_in_that_is_not_installed_is_said_before_anything_runs(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    plugins._load.cache_clear()
    with pytest.raises(PluginError, match=r"There is no plug-in subtitles for potstill.readers"):
        pipeline.run(recipe_of(small_recipe), project)
    assert not (project / "runs").exists()


def test_the_command_lists_plug_ins_and_says_what_is_wrong(site: Path) -> None:
    shell = CliRunner()
    listed = shell.invoke(app, ["plugins"])
    assert "  subtitles (potstill-example 0.3.0)\n" in listed.output
    assert "potstill.filters (a recipe's curate.filters)" in listed.output
    assert shell.invoke(app, ["plugins", "--check"]).exit_code == 0
    (site / "potstill_example" / "shouting.py").write_text("import nothing_of_that_name\n")
    with on_the_path(site):  # as a new process finds it
        wrong = shell.invoke(app, ["plugins", "--check", "--json"])
    assert wrong.exit_code == 6
    problems = {one["name"]: one["problem"] for one in json.loads(wrong.output)}
    assert "potstill-example 0.3.0" in problems.pop("shouting")
    assert set(problems.values()) == {""}


def test_the_doctor_names_them(site: Path, tmp_path: Path) -> None:
    from potstill import doctor

    (found,) = doctor._plugins()
    assert found.state == "ok"
    assert "hellinger (potstill-example 0.3.0)" in found.text
