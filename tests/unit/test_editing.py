"""Decisions about a run's rows: kept in the project, named by the recipe, never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studio_runs import make_run
from typer.testing import CliRunner

from potstill.cli import app
from potstill.core.files import write_records
from potstill.core.store import Store
from potstill.curate.edits import read_edits
from potstill.editing import decide, edits_of, rows_of, take_back, waiting
from potstill.errors import InputError, UsageError
from potstill.pipeline import Run
from potstill.recipe import Recipe


@pytest.fixture
def this(tmp_path: Path) -> Run:
    made = Run(make_run(tmp_path))
    write_recipe(made)
    return made


def write_recipe(this: Run, **changes: Any) -> None:
    plain = Recipe.load("quickstart").model_dump(mode="json") | {"name": this.folder.name}
    plain["curate"] |= changes
    text = Recipe.from_dict(plain).to_yaml()
    (this.folder / "recipe.yaml").write_text(text, "utf-8")


def named(this: Run) -> str:
    return Recipe.load(str(this.folder / "recipe.yaml")).curate.edits


def test_decisions_are_kept_beside_the_run_and_named_by_its_recipe(
    this: Run, tmp_path: Path
) -> None:
    assert (edits_of(this), waiting(this), named(this)) == ({}, 0, "")
    decide(this, "row-1", "reject", note="wrong")
    decide(this, "out", "accept")  # one that was set aside
    decide(this, "row-1", "edit", answer="Tove herself")
    made = decide(this, "", "add", question="Who may enter?", answer="Nobody", chunk="c")
    assert named(this) == "edits/made.jsonl"
    path = tmp_path / "edits" / "made.jsonl"
    assert [one.action for one in read_edits(path).values()] == ["accept", "edit", "add"]
    assert waiting(this) == 3
    decide(this, made.id, "edit", answer="No one")
    again = edits_of(this)[made.id]
    assert (again.action, again.fields.question, again.fields.answer, again.fields.chunk) == (
        "add", "Who may enter?", "No one", "c",
    )  # fmt: skip
    take_back(this, made.id)
    assert made.id not in edits_of(this)


def test_what_the_last_curation_read_waits_no_more(this: Run, tmp_path: Path) -> None:
    decide(this, "row-1", "reject")
    store = Store(tmp_path / "store")
    draft = store.draft("curate", "next")
    for name in ("train", "validation", "test", "rejected"):
        (draft.data / f"{name}.jsonl").write_text("")
    write_records(draft.data / "edits.jsonl", edits_of(this).values())
    made = store.commit(draft, {"stage": "curate", "key": "next", "seconds": 1.0})
    record = this.record
    record["stages"]["curate"] = {"key": "next", "digest": made.digest}
    (this.folder / "run.json").write_text(json.dumps(record))
    assert waiting(this) == 0
    take_back(this, "row-1")
    assert waiting(this) == 1


def test_a_copied_recipe_goes_on_in_a_file_of_its_own(this: Run, tmp_path: Path) -> None:
    decide(this, "row-1", "reject")
    copy = Run(make_run(tmp_path, "copy"))
    write_recipe(copy, edits="edits/made.jsonl")
    decide(copy, "row-2", "reject")
    assert (named(copy), named(this)) == ("edits/copy.jsonl", "edits/made.jsonl")
    assert (len(edits_of(copy)), len(edits_of(this))) == (2, 1)


def test_a_file_of_ones_own_stays_where_it_is(this: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"id":"row-2","action":"reject"}\n')
    write_recipe(this, edits="mine.jsonl")
    decide(this, "row-1", "accept")
    assert set(read_edits(tmp_path / "mine.jsonl")) == {"row-1", "row-2"}
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(InputError, match="no file below"):
        edits_of(this)


@pytest.mark.parametrize(
    ("row_id", "action", "fields", "said"),
    [
        ("nobody", "reject", {}, "no row nobody"),
        ("row", "reject", {}, "rows begin with row"),
        ("row-1", "edit", {"answer": "  "}, "An edit needs a question or an answer"),
        ("", "add", {"question": "Who?"}, "needs a question and an answer"),
        ("", "add", {"question": "Who?", "answer": "I", "chunk": "z"}, "no passage z"),
    ],
)
def test_what_cannot_be_decided_is_said(
    this: Run, row_id: str, action: Any, fields: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        decide(this, row_id, action, **fields)
    assert edits_of(this) == {}


def test_rows_of_an_improvement_are_decided_about_elsewhere(this: Run) -> None:
    write_recipe(this, prepared="runs/made/improve/rows")
    with pytest.raises(UsageError, match="come from feedback"):
        decide(this, "row-1", "reject")


def test_the_command_lists_rows_and_decides(this: Run, tmp_path: Path) -> None:
    assert sum(part == "rejected" for part, _ in rows_of(this)) == 1

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, ["rows", "made", "--project", str(tmp_path), *words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    assert "near_duplicate" in said()
    assert "2 decisions wait" in said("--reject", "row-1", "--reject", "row-2", "--note", "x")
    assert "Added    hand-" in said("--add", "--question", "Who may?", "--answer", "Nobody")
    assert "2 decisions wait" in said("--take-back", "row-1")
    listed = json.loads(said("--json", "--split", "train"))
    assert [(one["id"], one["decided"]) for one in listed] == [("row-1", ""), ("row-2", "reject")]
    for words in (("--accept", "row-1", "--reject", "row-2"), ("--question", "?"),
                  ("--split", "nowhere"), ("--reject", "row-1", "--answer", "x")):  # fmt: skip
        with pytest.raises(UsageError):
            said(*words)
