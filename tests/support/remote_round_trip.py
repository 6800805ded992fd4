"""What every kind of remote store must do, whoever answers at its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.core.files import mark_whole
from potstill.core.mirror import DraftMirror
from potstill.core.remote import RemoteStore
from potstill.core.stage import Artifact
from potstill.core.store import Store
from potstill.errors import StoreError


def finished(store: Store) -> Artifact:
    """A stage's result, in the store."""
    draft = store.draft("distill", "k1")
    (draft.data / "models").mkdir()
    (draft.data / "models" / "weights").write_bytes(b"w" * 3_000_000)
    (draft.data / "summary.json").write_text("{}")
    return store.commit(draft, {"stage": "distill", "key": "k1", "parts": {}, "counts": {}})


def there_and_back(address: str, tmp_path: Path) -> None:
    """Results and checkpoints go to a bucket and come back; what was damaged there does not."""
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    remote = RemoteStore(address)
    folder = first.draft("distill", "k1").work / "checkpoint-5"
    folder.mkdir()
    (folder / "weights").write_text("five")
    mark_whole(folder)
    mirror = DraftMirror(remote, first, "distill", "k1")
    assert mirror.bring() == 1
    assert DraftMirror(RemoteStore(address), second, "distill", "k1").restore() == 1
    artifact = finished(first)
    assert remote.bring(first, artifact)
    assert not remote.bring(first, artifact)
    mirror.discard()
    assert RemoteStore(address).fetch(second, "distill", "k1")
    found = second.find("distill", "k1", rehash=True)
    assert found is not None
    assert found.digest == artifact.digest
    left = remote.files.find(remote.root)
    assert not [path for path in left if ".draft/" in path]
    remote.files.pipe_file(
        remote.place("distill", "k1", artifact.digest[:16], "summary.json"), b"[]"
    )
    with pytest.raises(StoreError, match=r"damaged: summary\.json is not what its digest says"):
        remote.fetch(Store(tmp_path / "c"), "distill", "k1")
