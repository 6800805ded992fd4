"""Rows are decided about in the page as `potstill rows` does it, and the run goes on with that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studio_runs import HOME, browser, make_run

from potstill.editing import edits_of
from potstill.pipeline import Run
from potstill.recipe import Recipe
from potstill.studio.session import Studio

ROWS = "/runs/made/rows"


@pytest.fixture
def opened(tmp_path: Path) -> tuple[TestClient, Studio, Run]:
    folder = make_run(tmp_path)
    plain = Recipe.load("quickstart").model_dump(mode="json") | {"name": "made"}
    (folder / "recipe.yaml").write_text(Recipe.from_dict(plain).to_yaml(), "utf-8")
    return (*browser(tmp_path), Run(folder))


def test_a_row_is_set_aside_changed_kept_written_and_taken_back(
    opened: tuple[TestClient, Studio, Run],
) -> None:
    client, studio, run = opened

    def said(**fields: str) -> str:
        answer = client.post(
            ROWS,
            data={"form": studio.form, **fields},
            headers={"Referer": f"{HOME}/runs/made/data?split=train"},
        )
        assert answer.url.query == b"split=train"  # back to where one was
        return answer.text

    assert "set aside by hand" in said(row="row-1", action="reject", note="wrong")
    assert "Run again with 1 decision<" in client.get("/runs/made/data").text
    assert "changed by hand" in said(row="row-1", action="edit", answer="Tove<b>")
    assert "Tove&lt;b&gt;" in client.get("/runs/made/data/train/0").text
    assert "Take back" in client.get("/runs/made/data/train/0").text
    said(row="out-4", action="accept")
    assert "kept by hand" in client.get("/runs/made/data?split=rejected").text
    assert "Who may enter?" in said(action="add", question="Who may enter?", answer="No", chunk="c")
    assert {one.action for one in edits_of(run).values()} == {"edit", "accept", "add"}
    said(row="row-1", action="take_back")
    assert "row-1" not in edits_of(run)
    assert Recipe.load(str(run.folder / "recipe.yaml")).curate.edits == "edits/made.jsonl"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"action": "edit", "row": "row-1"}, "An edit needs a question or an answer"),
        ({"action": "reject", "row": "nobody"}, "no row nobody"),
        ({"action": "burn", "row": "row-1"}, "Nothing was decided"),
        ({"action": "add", "question": "Who?"}, "needs a question and an answer"),
        ({"action": "take_back", "row": "row-1"}, "Nothing was decided about"),
    ],
)
def test_what_cannot_be_decided_is_said_in_place(
    opened: tuple[TestClient, Studio, Run], fields: dict[str, str], said: str
) -> None:
    client, studio, run = opened
    answer = client.post(ROWS, data={"form": studio.form, **fields})
    assert answer.status_code == 404
    assert said in answer.text
    assert "<html" not in answer.text
    assert edits_of(run) == {}


def test_rows_that_cannot_be_decided_about_say_why(
    opened: tuple[TestClient, Studio, Run],
) -> None:
    client, _, run = opened
    (run.folder / "recipe.yaml").write_text("name: [", "utf-8")
    page = client.get("/runs/made/data").text
    assert "4 rows" in page
    assert "recipe.yaml" in page
    assert "Set aside or change" not in client.get("/runs/made/data/train/0").text
    record = json.loads((run.folder / "run.json").read_text())
    assert record["stages"]["curate"]  # and nothing was touched
