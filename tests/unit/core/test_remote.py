"""A remote store: what is whole there comes back whole, and nothing else does."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from potstill.core import remote as module
from potstill.core.files import mark_whole
from potstill.core.mirror import DraftMirror
from potstill.core.remote import RemoteStore, is_address, shown
from potstill.core.stage import Artifact
from potstill.core.store import Store
from potstill.errors import MissingExtraError, StoreError, UsageError


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = uuid.uuid4().hex
    yield f"memory://{name}/in/a" if request.param == "memory" else f"file://{tmp_path}/there"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


def finished(store: Store, key: str = "k1", text: str = "hello") -> Artifact:
    draft = store.draft("curate", key)
    (draft.data / "rows.jsonl").write_text(text)
    (draft.data / "models").mkdir(exist_ok=True)
    (draft.data / "models" / "empty.json").write_text("")
    return store.commit(
        draft, {"stage": "curate", "key": key, "parts": {}, "counts": {"rows": len(text)}}
    )


def here(tmp_path: Path, name: str) -> Store:
    return Store(tmp_path / name / "store")


def test_a_result_goes_there_and_comes_back_with_the_same_digest(
    address: str, tmp_path: Path
) -> None:
    first, second, told = here(tmp_path, "a"), here(tmp_path, "b"), []
    artifact, remote = finished(first), RemoteStore(address)
    assert remote.manifest("curate", "k1") is None
    assert not remote.fetch(second, "curate", "k1")
    assert remote.bring(first, artifact, lambda done, whole: told.append((done, whole)))
    assert told[-1] == (5, 5)
    assert not remote.bring(first, artifact)
    assert RemoteStore(address + "/").fetch(second, "curate", "k1")
    found = second.find("curate", "k1", rehash=True)
    assert found is not None
    assert found.digest == artifact.digest
    assert found.path("rows.jsonl").read_text() == "hello"
    assert second.manifest("curate", "k1") == first.manifest("curate", "k1")


def test_half_an_upload_is_nothing_and_the_next_one_makes_it_whole(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = here(tmp_path, "a"), here(tmp_path, "b")
    artifact, remote = finished(first), RemoteStore(address)
    with monkeypatch.context() as patch:
        patch.setattr(remote, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remote.bring(first, artifact)
    assert remote.files.find(remote.root)
    assert not remote.fetch(second, "curate", "k1")
    remote.files.pipe_file(remote.place("curate", "k1", "manifest.json"), b'{"key": "k1", "fil')
    assert not remote.fetch(second, "curate", "k1")
    assert not second.folder("curate", "k1").exists()
    assert remote.bring(first, artifact)
    assert remote.fetch(second, "curate", "k1")


def test_two_that_bring_the_same_key_never_mix(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, fourth = (here(tmp_path, name) for name in "abcd")
    one, other = finished(first, text="one"), finished(second, text="other")
    ours, theirs = RemoteStore(address), RemoteStore(address)

    def fetched(store: Store) -> tuple[str, str]:
        assert RemoteStore(address).fetch(store, "curate", "k1")
        found = store.find("curate", "k1", rehash=True)
        assert found is not None
        return found.digest, found.path("rows.jsonl").read_text()

    assert ours.bring(first, one)
    assert not theirs.bring(second, other)  # what is whole stays
    assert fetched(third) == (one.digest, "one")
    monkeypatch.setattr(theirs, "manifest", lambda *_: None)  # both looked before either wrote
    assert theirs.bring(second, other)
    assert fetched(fourth) == (other.digest, "other")


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_damage_there_is_one_line_and_leaves_nothing_here(
    address: str, tmp_path: Path, damage: str
) -> None:
    first, second = here(tmp_path, "a"), here(tmp_path, "b")
    artifact, remote = finished(first), RemoteStore(address)
    remote.bring(first, artifact)
    path = remote.place("curate", "k1", artifact.digest[:16], "rows.jsonl")
    if damage == "missing":
        remote.files.rm(path)
    else:
        remote.files.pipe_file(path, b"hallo" if damage == "changed" else b"hell")
    said = "is missing" if damage == "missing" else "is not what its digest says"
    with pytest.raises(StoreError, match=f"damaged: rows.jsonl {said}") as raised:
        remote.fetch(second, "curate", "k1")
    assert "Delete it there" in raised.value.hint
    assert not second.folder("curate", "k1").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "a/../../b", "..\\b"])
def test_a_manifest_cannot_write_outside_of_its_folder(
    address: str, tmp_path: Path, name: str
) -> None:
    remote, store = RemoteStore(address), here(tmp_path, "a")
    files = {name: {"sha256": "0", "bytes": 0}}
    said = {"key": "k1", "stage": "curate", "digest": "d" * 64, "files": files}
    remote.write_json(said, "curate", "k1", "manifest.json")
    with pytest.raises(StoreError, match="outside of its folder"):
        remote.fetch(store, "curate", "k1")
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize(
    ("raised", "said", "hint"),
    [
        (PermissionError("key AKIA123 may not"), "access was refused", "AWS_PROFILE"),
        (FileNotFoundError("The bucket"), "no such bucket", "Create it"),
        (OSError("secret 42"), "did not answer as it should", "network"),
        (TimeoutError("secret 42"), "did not answer as it should", "network"),
        (type("NoCredentialsError", (Exception,), {})(), "no credentials", "AWS_PROFILE"),
    ],
)
def test_what_a_service_raises_is_one_line_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str, hint: str
) -> None:
    store, remote = here(tmp_path, "a"), RemoteStore(f"file://{tmp_path}/there")
    artifact = finished(store)

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(remote.files, "put_file", fail, raising=False)
    with pytest.raises(StoreError, match=said) as caught:
        remote.bring(store, artifact)
    assert hint in caught.value.hint
    assert "AKIA" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert store.find("curate", "k1", rehash=True) is not None


def test_an_address_with_credentials_is_refused_without_repeating_them() -> None:
    for address in ("s3://AKIA1:hidden@bucket/x", "s3://bucket/x?secret=hidden"):
        with pytest.raises(UsageError) as raised:
            RemoteStore(address)
        assert "hidden" not in str(raised.value)
        assert "AKIA1" not in str(raised.value)
    assert shown("s3://AKIA1:hidden@bucket/x") == "s3://***@bucket/x"
    with pytest.raises(UsageError, match="speaks nothing-known"):
        RemoteStore("nothing-known://bucket/x")
    with pytest.raises(UsageError, match="chain"):
        RemoteStore("simplecache::file:///tmp/x")


def test_a_kind_whose_package_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install gcsfs to access GCS")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(MissingExtraError, match="gcsfs") as raised:
        RemoteStore("gs://bucket/x")
    assert "pip install gcsfs" in raised.value.hint


def test_folders_and_addresses_are_told_apart() -> None:
    assert all(map(is_address, ["s3://b/p", "gs://b", "file:///x", "memory://x"]))
    assert not any(map(is_address, ["/data/store", "store", "C:\\store", "./s3:/x", ""]))


def checkpoint(store: Store, step: int, text: str) -> Path:
    folder = store.draft("distill", "k1").work / "distilled" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(text)
    return folder


def test_only_whole_checkpoints_travel_and_old_ones_are_dropped(
    address: str, tmp_path: Path
) -> None:
    first, second = here(tmp_path, "a"), here(tmp_path, "b")
    remote = RemoteStore(address)
    ours, theirs = (DraftMirror(remote, one, "distill", "k1") for one in (first, second))
    half = checkpoint(first, 10, "ten")
    assert ours.bring() == 0
    assert theirs.restore() == 0
    mark_whole(half)
    assert (ours.bring(), ours.bring()) == (1, 0)
    mark_whole(checkpoint(first, 20, "twenty"))
    assert ours.bring() == 1
    (half / "complete.json").unlink()  # as the trainer drops one
    mark_whole(checkpoint(first, 30, "thirty"))
    assert ours.bring() == 1
    assert theirs.restore() == 2
    work = second.root / "distill" / "k1.draft" / "work" / "distilled"
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-20", "checkpoint-30"]
    assert (work / "checkpoint-30" / "model.safetensors").read_text() == "thirty"
    assert theirs.restore() == 0  # what was made here is not replaced
    ours.discard()
    assert DraftMirror(remote, here(tmp_path, "c"), "distill", "k1").restore() == 0


def test_a_damaged_checkpoint_is_left_out_and_the_others_are_fetched(
    address: str, tmp_path: Path
) -> None:
    first, second = here(tmp_path, "a"), here(tmp_path, "b")
    remote = RemoteStore(address)
    for step in (10, 20):
        mark_whole(checkpoint(first, step, f"step {step}"))
    DraftMirror(remote, first, "distill", "k1").bring()
    index = json.loads(remote.files.cat_file(remote.place("distill", "k1.draft", "index.json")))
    digest = index["work/distilled/checkpoint-20"]["digest"][: module.SHORT]
    remote.files.pipe_file(
        remote.place("distill", "k1.draft", digest, "model.safetensors"), b"another"
    )
    assert DraftMirror(remote, second, "distill", "k1").restore() == 1
    work = second.root / "distill" / "k1.draft" / "work" / "distilled"
    assert (work / "checkpoint-10").is_dir()
    assert not (work / "checkpoint-20").exists()
