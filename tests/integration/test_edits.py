"""A run goes on with what a person decided about its rows: what was read and written stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill.editing import decide, rows_of, waiting
from potstill.errors import UsageError
from potstill.records import Example
from potstill.sample import sample_path

pytestmark = pytest.mark.whole


def test_a_run_goes_on_after_edits(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    recipe = potstill.Recipe.from_dict(small_recipe)
    run = potstill.run(recipe, tmp_path, until="curate")
    before = {row.id: part for part, row in rows_of(run)}
    train = [row for part, row in rows_of(run) if part == "train" and isinstance(row, Example)]
    decide(run, train[0].id, "reject", note="wrong")
    decide(run, train[1].id, "edit", answer="the north jetty")
    made = decide(run, "", "add", question="Which jetty is it?", answer="the north jetty",
                  chunk=train[2].provenance.chunk)  # fmt: skip
    again = potstill.Recipe.load(str(run.folder / "recipe.yaml"))
    actions = {step.name: step.action for step in potstill.plan(again, tmp_path)}
    assert (actions["ingest"], actions["generate"], actions["curate"]) == ("reuse", "reuse", "run")
    assert waiting(run) == 3

    run = potstill.run(again, tmp_path, until="curate")
    assert waiting(run) == 0
    after = {row.id: part for part, row in rows_of(run)}
    assert after == before | {train[0].id: "rejected", made.id: "train"}
    edited = next(row for _, row in rows_of(run) if row.id == train[1].id)
    assert isinstance(edited, Example)
    assert edited.turns[-1].content == "the north jetty"
    written = next(row for _, row in rows_of(run) if row.id == made.id)
    assert isinstance(written, Example)
    assert written.turns[0].content == train[2].turns[0].content.replace(
        train[2].question, "Which jetty is it?"
    )
    card = json.loads(run.artifact("curate").path("card.json").read_text())
    assert card["by_hand"] == {"reject": 1, "edit": 1, "add": 1}
    assert "By hand: 1 rejected, 1 edited, 1 written." in (run.folder / "data-card.html").read_text(
        "utf-8"
    )
    assert all(
        step.action == "reuse" for step in potstill.plan(again, tmp_path)
        if step.name in ("ingest", "generate", "curate")
    )  # fmt: skip


def test_a_finished_stage_is_run_once_more_with_all_after_it(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    recipe = potstill.Recipe.from_dict(small_recipe)
    with pytest.raises(UsageError, match="has not finished the stage curate"):
        potstill.run(recipe, tmp_path, until="curate", again="curate")
    run = potstill.run(recipe, tmp_path, until="curate")
    first = {row.id: part for part, row in rows_of(run)}
    kinds: list[tuple[str, str]] = []
    run = potstill.run(
        recipe, tmp_path, until="curate", again="generate",
        watch=lambda event: kinds.append((event["stage"], event["kind"])),
    )  # fmt: skip
    done = [one for one in kinds if one[1] in ("skipped", "finished")]
    assert done == [("ingest", "skipped"), ("generate", "finished"), ("curate", "finished")]
    assert {row.id: part for part, row in rows_of(run)} == first
    with pytest.raises(UsageError, match="no stage baking"):
        potstill.run(recipe, tmp_path, again="baking")
    held = [
        event["memory_bytes"]
        for event in map(json.loads, run.events.read_text().splitlines())
        if event["kind"] == "progress"
    ]
    assert min(held) > 1e7
