"""Finished results on disk, found by key: `<root>/<stage>/<key>/{data/, manifest.json}`.

In: a draft folder and a manifest. Out: artifacts that are complete, or not there.
A result is built beside its final place, its files are fsynced, the manifest is written last, and
one rename makes it visible; so a kill at any moment leaves either nothing or everything.
Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.core.files import (
    UNFINISHED,
    disk_errors,
    file_digest,
    folder_files,
    fsync_folder,
    read_json,
    write_json,
)
from potstill.core.stage import Artifact, Draft
from potstill.errors import StoreError

MANIFEST = "manifest.json"
DISCARD_PATIENCE = 30.0  # seconds to wait for a process that is just dying


class Store:
    """All finished results of a project."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """Shared results that are not a stage's output, such as finished teacher requests."""
        return self.root / "cache"

    def folder(self, stage: str, key: str) -> Path:
        """Where the result of that key is, or would be."""
        return self.root / stage / key

    def manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        """The manifest of a finished result, or None. Errors: StoreError if it is damaged."""
        folder = self.folder(stage, key)
        if not folder.exists():
            return None
        try:
            manifest = read_json(folder / MANIFEST)
            if not isinstance(manifest, dict) or manifest.get("key") != key:
                raise StoreError(f"{folder / MANIFEST} is not the manifest of this entry.")
            manifest["files"], manifest["digest"]
        except (StoreError, OSError, KeyError) as error:
            raise _damaged(folder, f"its manifest cannot be read ({error})") from error
        return manifest

    def find(self, stage: str, key: str, *, rehash: bool = False) -> Artifact | None:
        """The finished result of that key, or None.

        Files are checked by presence and size, and with `rehash` by content. Errors: StoreError.
        """
        manifest = self.manifest(stage, key)
        if manifest is None:
            return None
        folder = self.folder(stage, key)
        problems = check_files(folder, manifest, rehash=rehash)
        if problems:
            raise _damaged(folder, problems[0])
        return Artifact(stage, key, folder, manifest["digest"])

    def newest_manifest(self, stage: str, *, undisturbed: bool = False) -> dict[str, Any] | None:
        """The manifest of the stage's last finished result, whatever its key; None if none.

        undisturbed: of those that were made in one go.
        """
        finished: list[dict[str, Any]] = []
        for path in (self.root / stage).glob(f"*/{MANIFEST}"):
            try:
                finished.append(read_json(path))
            except (StoreError, OSError):
                continue  # a damaged entry is reported when it is used, not when it is compared
        if undisturbed:
            finished = [one for one in finished if not one.get("resumed")]
        return max(finished, key=lambda one: str(one.get("finished", "")), default=None)

    @contextmanager
    def locked(self, stage: str, key: str, patience: float) -> Iterator[None]:
        """Hold the entry's lock; the system frees it when the holder dies, however it dies."""
        folder = self.root / stage
        with disk_errors(folder, "create"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{key}.lock")
            try:
                lock.acquire(timeout=patience)
            except Timeout as error:
                raise StoreError(
                    f"Another process is working on {stage} {key[:12]} in {self.root}.",
                    "Wait for it to end, or stop it, then run the same command again.",
                ) from error
        try:
            yield
        finally:
            lock.release()

    def has_draft(self, stage: str, key: str) -> bool:
        """Whether a process was interrupted while it made this entry."""
        return (self.root / stage / f"{key}.draft").exists()

    def draft(self, stage: str, key: str) -> Draft:
        """The entry's draft folder; one left behind by a killed process is gone on with, without
        the halves of files that it was writing."""
        draft = Draft(self.root / stage / f"{key}.draft")
        with disk_errors(draft.folder, "create"):
            draft.data.mkdir(parents=True, exist_ok=True)
            draft.work.mkdir(parents=True, exist_ok=True)
            for half in list(draft.folder.rglob(UNFINISHED)):
                if half.is_dir():
                    shutil.rmtree(half)
                else:
                    half.unlink(missing_ok=True)
        return draft

    def discard_draft(self, stage: str, key: str) -> None:
        """Delete what an interrupted process left of this entry; a finished one stays."""
        with self.locked(stage, key, DISCARD_PATIENCE):
            folder = self.root / stage / f"{key}.draft"
            with disk_errors(folder, "delete"):
                if folder.exists():
                    shutil.rmtree(folder)

    def discard(self, stage: str, key: str) -> None:
        """Delete a finished result, and what an interrupted process left of one."""
        self.discard_draft(stage, key)
        with self.locked(stage, key, DISCARD_PATIENCE):
            folder, gone = self.folder(stage, key), self.root / stage / f".{key}.gone"
            with disk_errors(folder, "delete"):
                if gone.exists():  # left by a kill
                    shutil.rmtree(gone)
                if folder.exists():
                    (folder / MANIFEST).unlink(missing_ok=True)  # never a whole one again
                    folder.rename(gone)
                    shutil.rmtree(gone)

    def commit(self, draft: Draft, manifest: Mapping[str, Any]) -> Artifact:
        """Make a draft the finished result of its key. `manifest` needs `stage` and `key`."""
        final = self.folder(manifest["stage"], manifest["key"])
        with disk_errors(draft.folder, "finish"):
            files = {}
            for relative in folder_files(draft.data):
                path = draft.data / relative
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                files[relative.as_posix()] = {
                    "sha256": file_digest(path),
                    "bytes": path.stat().st_size,
                }
            digest = content_digest(files)
            write_json(draft.folder / MANIFEST, {**manifest, "digest": digest, "files": files})
            self._publish(draft, final)
        return Artifact(manifest["stage"], manifest["key"], final, digest)

    def recover(self, stage: str, key: str) -> bool:
        """Publish a draft that was killed between its manifest and its rename; True if it was."""
        draft = Draft(self.root / stage / f"{key}.draft")
        if not (draft.folder / MANIFEST).exists():
            return False
        manifest = read_json(draft.folder / MANIFEST)
        if check_files(draft.folder, manifest, rehash=True):
            (draft.folder / MANIFEST).unlink()
            return False
        self._publish(draft, self.folder(stage, key))
        return True

    def tidy(self, artifact: Artifact) -> None:
        """Drop the working files that a kill just after the rename may have left."""
        shutil.rmtree(artifact.folder / "work", ignore_errors=True)

    def _publish(self, draft: Draft, final: Path) -> None:
        fsync_folder(draft.folder)
        draft.folder.rename(final)
        fsync_folder(final.parent)
        shutil.rmtree(final / "work", ignore_errors=True)


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash for a folder's content: of the sorted names and hashes of its files."""
    lines = [[name, files[name]["sha256"]] for name in sorted(files)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def check_files(folder: Path, manifest: Mapping[str, Any], *, rehash: bool) -> list[str]:
    """What is wrong with an entry's files, one sentence each; an empty list if nothing is."""
    problems = []
    expected: Mapping[str, Mapping[str, Any]] = manifest["files"]
    present = {path.as_posix() for path in folder_files(folder / "data")}
    problems += [f"data/{name} is missing" for name in sorted(set(expected) - present)]
    problems += [f"data/{name} does not belong to it" for name in sorted(present - set(expected))]
    for name in sorted(set(expected) & present):
        path = folder / "data" / name
        if path.stat().st_size != expected[name]["bytes"]:
            problems.append(
                f"data/{name} has {path.stat().st_size} bytes, not {expected[name]['bytes']}"
            )
        elif rehash and file_digest(path) != expected[name]["sha256"]:
            problems.append(f"data/{name} has changed since it was written")
    return problems


def _damaged(folder: Path, what: str) -> StoreError:
    return StoreError(
        f"The stored result {folder} is damaged: {what}.",
        f"Delete that folder (rm -r '{folder}') and run the same command again; "
        "only this stage is made anew.",
    )
