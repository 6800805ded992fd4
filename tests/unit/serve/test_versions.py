"""Versions: a gate, a promotion, a way back, and a file that is never half."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import StoreError, UsageError
from potstill.serve.versions import Serving, Versions


def verdict(state: str) -> dict[str, Any]:
    return {"state": state, "reasons": ["Answer F1 is better"], "metric": "f1"}


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    made = Versions(tmp_path / "serve", "small")
    for name, state in (("a", "passed"), ("b", "unproven"), ("c", "failed")):
        made.add_candidate(name, origin="small", export=f"key-{name}", gate=verdict(state))
    return made


def test_a_run_that_was_never_improved_serves_itself(tmp_path: Path) -> None:
    one = Versions(tmp_path, "small")
    assert one.current() == Serving("small")
    assert one.stamp() == (0, 0, 0)
    with pytest.raises(UsageError, match="first version"):
        one.rollback()
    assert not one.path.exists() or one.current() == Serving("small")


def test_promotion_and_the_way_back(versions: Versions) -> None:
    before = versions.stamp()
    assert versions.promote("a", "a.gguf", "key-a", by="ada") == Serving("a", "a.gguf")
    assert versions.stamp() != before
    assert versions.current() == Serving("a", "a.gguf")
    versions.add_candidate("d", origin="a", export="key-d", gate=verdict("passed"))
    versions.promote("d", "d.gguf", "key-d")
    assert versions.rollback() == Serving("a", "a.gguf")
    assert versions.rollback() == Serving("small")
    assert versions.promote("a", "a.gguf", "key-a") == Serving("a", "a.gguf")  # its gate holds
    actions = [(one["action"], one["from"], one["to"]) for one in versions.read()["history"]]
    assert actions == [
        ("promote", "small", "a"),
        ("promote", "a", "d"),
        ("rollback", "d", "a"),
        ("rollback", "a", "small"),
        ("promote", "small", "a"),
    ]
    assert versions.read()["history"][0]["by"] == "ada"


def test_no_promotion_without_a_passed_gate(versions: Versions) -> None:
    refusals: list[tuple[str, str, str]] = [
        ("none", "key", "has passed no gate"),
        ("a", "other", "was run again since its gate"),
        ("b", "key-b", "not proven better"),
        ("c", "key-c", "has not passed the gate"),
        ("small", "key", "serves small already"),
    ]
    for name, export, words in refusals:
        with pytest.raises(UsageError, match=words):
            versions.promote(name, "x.gguf", export)
    assert versions.current() == Serving("small")
    versions.promote("b", "b.gguf", "key-b", accept_unproven=True)
    assert versions.read()["serving"][-1]["unproven"]
    with pytest.raises(UsageError, match="was compared with small, but b serves now"):
        versions.promote("a", "a.gguf", "key-a")
    versions.promote("c", "c.gguf", "key-c", force=True)
    last = versions.read()
    assert last["serving"][-1]["forced"]
    assert last["history"][-1]["reason"].startswith("forced: c was compared with small")


def test_a_damaged_file_is_one_line(versions: Versions) -> None:
    versions.path.write_text("[]")
    with pytest.raises(StoreError, match="is damaged"):
        versions.current()


def add(folder: Path, number: int) -> None:
    one = Versions(folder, "small")
    one.add_candidate(f"n{number}", origin="small", export="k", gate=verdict("passed"))


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add, args=(tmp_path, number)) for number in range(8)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert len(json.loads((tmp_path / "versions.json").read_text())["candidates"]) == 8
