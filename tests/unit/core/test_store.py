"""A store entry is complete or not there, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.core.store import Store, check_files
from potstill.errors import StoreError


def finished(store: Store, key: str = "k1", text: str = "hello") -> Path:
    draft = store.draft("curate", key)
    (draft.data / "rows.jsonl").write_text(text)
    (draft.work / "scratch").write_text("not part of the result")
    return store.commit(draft, {"stage": "curate", "key": key, "parts": {}}).folder


def test_an_unfinished_draft_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft("curate", "k1")
    (draft.data / "rows.jsonl").write_text("half")
    assert store.find("curate", "k1") is None


def test_halves_of_files_that_a_kill_left_behind_do_not_become_results(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft("curate", "k1")
    (draft.data / ".rows.jsonl.4711.part").write_text("hal")
    (draft.data / "models").mkdir()
    (draft.data / "models" / ".config.json.12.part").mkdir()
    (draft.work / "scratch").write_text("kept")
    assert store.draft("curate", "k1").folder == draft.folder
    assert [path.name for path in sorted(draft.folder.rglob("*")) if path.is_file()] == ["scratch"]
    finished(store)
    assert (
        check_files(tmp_path / "curate" / "k1", store.manifest("curate", "k1"), rehash=True) == []
    )


def test_a_committed_draft_is_found_without_its_working_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store)
    artifact = store.find("curate", "k1", rehash=True)
    assert artifact is not None
    assert artifact.path("rows.jsonl").read_text() == "hello"
    assert not (folder / "work").exists()
    assert not store.draft("curate", "k2").folder.samefile(folder)


def test_equal_content_gives_equal_digests_under_different_keys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, "k1")
    finished(store, "k2")
    finished(store, "k3", "other")
    digests = [store.find("curate", key).digest for key in ("k1", "k2", "k3")]  # type: ignore[union-attr]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("rehash", [True, False])
def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path, rehash: bool) -> None:
    store = Store(tmp_path)
    (finished(store) / "data" / "rows.jsonl").unlink()
    with pytest.raises(StoreError, match=r"rows\.jsonl is missing.*Delete that folder"):
        store.find("curate", "k1", rehash=rehash)


def test_changed_bytes_of_the_same_length_are_found_by_rehashing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (finished(store) / "data" / "rows.jsonl").write_text("jello")
    assert store.find("curate", "k1") is not None
    with pytest.raises(StoreError, match="has changed since it was written"):
        store.find("curate", "k1", rehash=True)


def test_a_damaged_manifest_is_an_error_and_not_a_missing_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (finished(store) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="manifest cannot be read"):
        store.find("curate", "k1")


def test_a_foreign_file_in_an_entry_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store)
    (folder / "data" / "extra").write_text("?")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert check_files(folder, manifest, rehash=False) == ["data/extra does not belong to it"]


def test_a_kill_between_manifest_and_rename_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store)
    draft = tmp_path / "curate" / "k1.draft"
    folder.rename(draft)
    assert store.find("curate", "k1") is None
    assert store.recover("curate", "k1")
    assert store.find("curate", "k1", rehash=True) is not None


def test_a_draft_that_changed_after_its_manifest_is_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store)
    draft = tmp_path / "curate" / "k1.draft"
    folder.rename(draft)
    (draft / "data" / "rows.jsonl").write_text("jello")
    assert not store.recover("curate", "k1")
    assert store.find("curate", "k1") is None


def test_a_lock_that_is_held_is_reported_as_another_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        store.locked("curate", "k1", 0),
        pytest.raises(StoreError, match="Another process is working on curate"),
        Store(tmp_path).locked("curate", "k1", 0.05),
    ):
        pass


def test_a_result_is_discarded_whole_with_what_a_kill_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft("curate", "k")
    (draft.data / "rows").write_text("x")
    store.commit(draft, {"stage": "curate", "key": "k"})
    (tmp_path / "curate" / ".k.gone").mkdir()
    store.draft("curate", "k")
    store.discard("curate", "k")
    assert store.find("curate", "k") is None
    assert [one.name for one in (tmp_path / "curate").iterdir() if one.is_dir()] == []
    store.discard("curate", "k")  # nothing there: nothing to do
