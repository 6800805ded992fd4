"""A run knows its project and store wherever the project's folder was moved or mounted since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.pipeline import Run, verify


def project(folder: Path, recorded: Path, store: Path | None = None) -> Run:
    """The run `small` of the project in a folder, which was made when it was at `recorded`."""
    (folder / "runs" / "small").mkdir(parents=True)
    record = {
        "project": str(recorded),
        "store": str(store or recorded / "store"),
        "stages": {"ingest": {"key": "0123"}},
    }
    (folder / "runs" / "small" / "run.json").write_text(json.dumps(record), "utf-8")
    return Run(folder / "runs" / "small")


def test_where_it_was_made(tmp_path: Path) -> None:
    run = project(tmp_path, tmp_path)
    assert (run.project, run.store) == (tmp_path, tmp_path / "store")


def test_moved_or_mounted_elsewhere(tmp_path: Path) -> None:
    run = project(tmp_path / "now", tmp_path / "then")
    assert (run.project, run.store) == (tmp_path / "now", tmp_path / "now" / "store")
    assert "now" in verify(run)["ingest"][0]


def test_copied_with_its_store_while_the_first_is_still_there(tmp_path: Path) -> None:
    project(tmp_path / "then", tmp_path / "then")
    run = project(tmp_path / "now", tmp_path / "then")
    (tmp_path / "now" / "store").mkdir()
    assert run.store == tmp_path / "now" / "store"


def test_a_run_that_is_kept_elsewhere_stays_of_its_project(tmp_path: Path) -> None:
    """As a study's trials are, and what a caller of `run(folder=…)` chose."""
    (tmp_path / "home").mkdir()
    run = project(tmp_path / "other", tmp_path / "home")
    assert (run.project, run.store) == (tmp_path / "home", tmp_path / "home" / "store")
    trial = tmp_path / "other" / "trial"
    (tmp_path / "other" / "runs" / "small").rename(trial)
    assert Run(trial).store == tmp_path / "home" / "store"


def test_a_store_outside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = project(tmp_path / "now", tmp_path / "then", outside)
    monkeypatch.delenv("POTSTILL_STORE", raising=False)
    assert run.store == outside
    monkeypatch.setenv("POTSTILL_STORE", str(tmp_path / "mounted"))
    assert run.store == outside  # it is there: the variable is for new runs
    outside.rmdir()
    assert run.store == tmp_path / "mounted"
