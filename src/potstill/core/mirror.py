"""What a run brings to the remote store, and fetches from it; checkpoints while a stage runs.

In: a remote store, a stage's draft or result. Out: what another machine needs to go on after this
one is taken away, and the steps by which a run uses both stores.

Of a draft only folders that are whole are brought: those that hold the mark `complete.json`, which
is written when nothing in them changes any more. Of everything else a copy could be half of one
moment and half of another.

    <stage>/<key>.draft/<digest>/…      one folder's files
    <stage>/<key>.draft/index.json      which folders there are, and their files' digests; last

Knows nothing of what is in a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from potstill.core.events import Emitter
from potstill.core.files import WHOLE, is_whole, whole_folder
from potstill.core.remote import SHORT, RemoteStore, described
from potstill.core.stage import Artifact
from potstill.core.store import Store, content_digest
from potstill.errors import StoreError, UsageError

Watcher = Callable[[dict[str, Any]], None]
PATIENCE = 30.0  # seconds to wait for a lock whose holder is just dying
INDEX = "index.json"
SECONDS = "POTSTILL_MIRROR_SECONDS"
"""The environment's name of the time between two looks at a draft; 20 if it is not set. A folder
that is brought already costs nothing."""


class DraftMirror:
    """The whole folders of one draft and their copies at the address."""

    def __init__(self, remote: RemoteStore, store: Store, stage: str, key: str) -> None:
        self.remote, self.stage, self.key = remote, stage, key
        self.folder = store.root / stage / f"{key}.draft"
        self._brought: dict[str, dict[str, Any]] = {}

    @property
    def _place(self) -> tuple[str, str]:
        return self.stage, f"{self.key}.draft"

    def restore(self) -> int:
        """Fetch the folders that are there and not here; how many. A damaged one is left out.

        Only into a draft without any whole folder: one that was made here is further, or as far.
        Errors: StoreError if the address cannot be read.
        """
        if any(self._whole()):
            return 0
        with self.remote.errors("read"):
            index = self.remote.read_json(*self._place, INDEX)
        if not isinstance(index, dict):
            return 0
        count = 0
        for name, said in index.items():
            target = self.folder / name
            if ".." in PurePosixPath(name).parts or not target.is_relative_to(self.folder):
                raise self.remote.damaged(self._place, f"{name} lies outside of it")
            target.parent.mkdir(parents=True, exist_ok=True)
            # A damaged one, or one that was replaced just now: the stage makes it again.
            with contextlib.suppress(StoreError), whole_folder(target) as part:
                source = (*self._place, str(said["digest"])[:SHORT])
                self.remote.download(source, said["files"], part)
                count += 1
        return count

    def bring(self) -> int:
        """Upload what is new and whole, then say so, then drop what is gone here; how many.

        Errors: StoreError.
        """
        found: dict[str, dict[str, Any]] = {}
        new = 0
        for folder in self._whole():
            name = folder.relative_to(self.folder).as_posix()
            found[name] = self._brought.get(name) or self._upload(folder)
            new += name not in self._brought
        if not found or found.keys() == self._brought.keys():
            return 0
        self.remote.write_json(found, *self._place, INDEX)
        for name in self._brought.keys() - found.keys():
            self.remote.remove(*self._place, self._brought[name]["digest"][:SHORT])
        self._brought = found
        return new

    def discard(self) -> None:
        """Remove the copies: the stage is finished. Errors: StoreError."""
        self.remote.remove(*self._place)

    @contextmanager
    def following(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Bring what becomes whole while the block runs, and once more when it fails."""
        ended, pause = threading.Event(), _pause()

        def work() -> None:
            told = False
            while not ended.wait(pause):
                try:
                    self.bring()
                    told = False
                except StoreError as error:
                    if not told:
                        warn(f"Checkpoints stay on this machine for now. {error.message}")
                    told = True
                except OSError:
                    continue  # a checkpoint that was deleted while it was read

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            with contextlib.suppress(StoreError, OSError):
                self.bring()
            raise
        finally:
            ended.set()
            thread.join()

    def _whole(self) -> Iterator[Path]:
        for mark in sorted(self.folder.rglob(WHOLE)):
            if is_whole(mark.parent):
                yield mark.parent

    def _upload(self, folder: Path) -> dict[str, Any]:
        files = described(folder)
        digest = content_digest(files)
        self.remote.upload(folder, files, (*self._place, digest[:SHORT]))
        return {"digest": digest, "files": files}


def fetch(remote: RemoteStore | None, store: Store, stage: str, key: str, watch: Watcher) -> bool:
    """Bring a result here if it is at the address. Errors: StoreError."""
    if remote is None or remote.manifest(stage, key) is None:
        return False
    with store.locked(stage, key, PATIENCE):
        if store.find(stage, key) is not None:
            return True  # another process did meanwhile
        return remote.fetch(store, stage, key, _progress(watch, stage, "download"))


def bring(
    remote: RemoteStore | None,
    store: Store,
    artifact: Artifact,
    watch: Watcher,
    *,
    again: bool = False,
) -> bool:
    """Bring a result there; whether it is there now. Errors: StoreError if this is another try,
    else who watches is warned."""
    if remote is None:
        return True
    stage = artifact.stage
    try:
        remote.bring(store, artifact, _progress(watch, stage, "upload"))
        DraftMirror(remote, store, stage, artifact.key).discard()
        return True
    except StoreError as error:
        if again:
            raise
        message = f"The result of {stage} is not in the remote store yet. {error.message}"
        watch({"stage": stage, "kind": "warning", "message": message})
        return False


@contextmanager
def following(
    remote: RemoteStore | None, store: Store, stage: str, key: str, events: Path
) -> Iterator[None]:
    """While a stage runs, its checkpoints are brought to the address; before, those of another
    machine are fetched from there. Errors: StoreError."""
    if remote is None:
        yield
        return
    mirror = DraftMirror(remote, store, stage, key)
    with store.locked(stage, key, PATIENCE):
        mirror.restore()
    with mirror.following(Emitter(events, stage).warning):
        yield


def _progress(watch: Watcher, stage: str, step: str) -> Callable[[int, int], None]:
    """Tells who watches, not the diary, how much is through."""

    def told(done: int, total: int) -> None:
        event = {"done": done / 1e6, "total": max(total, 1) / 1e6, "unit": "MB", "step": step}
        watch({"stage": stage, "kind": "progress", **event})

    return told


def _pause() -> float:
    """Errors: UsageError for a time that is none."""
    said = os.environ.get(SECONDS) or "20"
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise UsageError(f"{SECONDS} is {said!r}, not a number of seconds.", "For example: 20")
    return seconds
