"""A study is written and started in the page; what is wrong with it is said above its text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from studio_runs import browser, make_run

from potstill.recipe import Recipe, builtin_recipes
from potstill.studio.runs import find_run
from potstill.studio.search_page import studies_of, study_of
from potstill.tune.study import Study, builtin_studies

STUDY = builtin_studies()["quickstart"].read_text("utf-8")


def test_a_built_in_study_is_begun_as_a_process_of_its_own(tmp_path: Path) -> None:
    client, studio = browser(tmp_path)
    assert "Learning rate, weights of the loss" in client.get("/search?from=quickstart").text
    assert client.get("/search?from=nowhere").status_code == 404
    launched: list[list[str]] = []
    studio.launcher.launch = lambda place, words, project, log: launched.append(words)  # type: ignore[method-assign]
    for _ in range(2):  # the same text once more: the same study goes on
        assert client.post("/search", data={"form": studio.form, "study": STUDY}).status_code == 200
    file = tmp_path / "studies" / "quickstart" / "study.yaml"
    assert launched == [["tune", str(file)]] * 2
    assert file.read_text("utf-8") == STUDY
    (study,) = studies_of(studio)
    assert (study["name"], study["recipes"], study["running"]) == ("quickstart", [], False)
    client.post("/search/quickstart/resume", data={"form": studio.form})
    assert len(launched) == 3


@pytest.mark.parametrize("name", ["quickstart", "chat-gguf-local", "extractive-qa-local"])
def test_a_study_around_a_run_of_ones_own_is_one_that_can_begin(tmp_path: Path, name: str) -> None:
    client, studio = browser(tmp_path)
    folder = make_run(tmp_path, "mine")
    (folder / "recipe.yaml").write_text(builtin_recipes()[name].read_text("utf-8"), "utf-8")
    assert 'href="/search?run=mine#study"' in client.get("/search").text
    assert "recipe: runs/mine/recipe.yaml" in client.get("/search?run=mine").text
    text = study_of(find_run(studio, "mine"))
    study = Study.from_dict(yaml.safe_load(text), tmp_path)
    assert study.recipe.distill == Recipe.load(name).distill
    rates = study.dimensions[0]
    assert rates.field == "distill.learning_rate"
    assert client.get("/search?run=gone").status_code == 404


def test_how_far_a_study_is_stands_in_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.db").write_text("")
    client, studio = browser(tmp_path)
    for status, state, words in (
        ("", "stopped", "No trial has ended yet"),
        (
            '{"trials": 4, "complete": 1, "pruned": 1, "running": 1}',
            "stopped",
            "2 of 4 trials, 1 pr",
        ),
        ('{"trials": 2, "complete": 1, "failed": 1}', "finished", "2 of 2 trials, 1 failed"),
        ('["no", "status"]', "stopped", "No trial has ended yet"),
        ('{"trials": ', "stopped", "No trial has ended yet"),
    ):
        (folder / "status.json").write_text(status)
        page = client.get("/search").text
        assert studies_of(studio)[0]["state"] == state
        assert words in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "study"),
        ("name: ../up", "needs a name"),
        ("recipe: quickstart", "needs a name"),
        (STUDY.replace("trials: 12", "trials: many"), "trials"),
        (STUDY.replace("distill.kd_weight", "distill.kd_wait"), "kd_wait"),
        ("x" * (2 << 20), "too much"),
    ],
)
def test_what_is_wrong_is_said_above_the_text(tmp_path: Path, text: str, said: str) -> None:
    client, studio = browser(tmp_path)
    answer = client.post("/search", data={"form": studio.form, "study": text})
    assert answer.status_code >= 400
    assert said in answer.text
    assert not (tmp_path / "studies").exists()


def test_a_name_is_taken_once_and_a_failure_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "study.db").write_text("")
    (folder / "tune.log").write_text("== now\nError: It failed.\nMend it.\n")
    client, studio = browser(tmp_path)
    assert "It failed. Mend it." in client.get("/search").text
    answer = client.post("/search", data={"form": studio.form, "study": STUDY})
    assert "There is a study quickstart already." in answer.text
    assert (
        "begun in a terminal"
        in client.post("/search/quickstart/resume", data={"form": studio.form}).text
    )
    for path in ("/search/gone/stop", "/search/quickstart/burn"):
        assert client.post(path, data={"form": studio.form}).status_code == 404


@pytest.mark.whole
def test_a_study_that_cannot_run_says_why(tmp_path: Path) -> None:
    client, studio = browser(tmp_path)
    recipe = {"name": "r", "teacher": str(tmp_path / "gone"), "ingest": {"sources": ["no.md"]}}
    plain = yaml.safe_load(STUDY) | {"recipe": "recipe.yaml", "name": "mine", "set": []}
    folder = tmp_path / "studies" / "mine"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plain["search"] = {"distill.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}
    text = yaml.safe_dump(plain)
    answer = client.post("/search", data={"form": studio.form, "study": text})
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 90
    while studio.launcher.running(folder):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert 'class="failed small"' in client.get("/search").text
