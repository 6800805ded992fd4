"""Finished results at an address: s3://bucket/prefix, gs://…, file://…, whatever fsspec speaks.

In: an address, the local store. Out: finished results that were fetched from there and checked, or
brought there. The local store stays the place where everything is made; this is its mirror.

    <address>/<stage>/<key>/<digest>/…            the files of one content
    <address>/<stage>/<key>/manifest.json         which content it is, and every file's digest
    <address>/<stage>/<key>.draft/…               of an unfinished stage: `core/mirror.py`

Files go first and the manifest last, so half an upload is nothing. Files lie under the digest of
their content, so two that bring the same key at once never mix: whose manifest is later is fetched.
What is fetched is hashed before it becomes a result. Credentials are those of the environment, as
the provider's own tools read them; an address that holds some is refused, and no error repeats what
a service said, for it may name them. Knows nothing of what the files mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from potstill.core.extras import require
from potstill.core.files import (
    disk_errors,
    file_digest,
    folder_files,
    fsync_file,
    whole_folder,
    write_json,
)
from potstill.core.stage import Artifact
from potstill.core.store import MANIFEST, Store
from potstill.errors import MissingExtraError, StoreError, UsageError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SHORT = 16
"""Digits of a digest in a folder's name."""
OPTIONS: dict[str, dict[str, Any]] = {
    # An unreachable service is told within a minute, not after botocore's own quarter of an hour.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}},
    "file": {"auto_mkdir": True},
}
Told = Callable[[int, int], None]
"""Called with the bytes that are through and those in all."""


def is_address(text: str) -> bool:
    """Whether a store is named by an address, not by a folder."""
    return ADDRESS.match(text) is not None


def shown(address: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}"


class RemoteStore:
    """Finished results at an address."""

    def __init__(self, address: str) -> None:
        """Errors: UsageError for an address that is none or holds credentials; MissingExtraError
        for a kind whose package is not installed."""
        parts = urlsplit(address)
        self.address = shown(address).rstrip("/")
        if "@" in parts.netloc or parts.query or "::" in address:
            raise UsageError(
                f"The store {self.address} holds credentials, a query or a chain.",
                "Give the plain address; credentials are read from the environment, such as "
                "AWS_ACCESS_KEY_ID or AWS_PROFILE.",
            )
        fsspec = require("fsspec", "remote", f"The store {self.address}")
        try:
            self.files, self.root = fsspec.core.url_to_fs(address, **OPTIONS.get(parts.scheme, {}))
        except ImportError as error:
            package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(parts.scheme)
            said = package or getattr(error, "name", "") or "a package of its own"
            raise MissingExtraError(
                f"The store {self.address} needs {said}, which is not installed.",
                'Install it with: pip install "potstill[remote]"'
                if said == "s3fs"
                else f"Install it with: pip install {said}",
            ) from error
        except ValueError as error:
            known = "s3://bucket/prefix, gs://bucket/prefix, file:///folder"
            raise UsageError(
                f"Nothing here speaks {parts.scheme}://, of the store {self.address}.",
                f"For example: {known}.",
            ) from error
        self.root = self.root.rstrip("/")

    def place(self, *parts: str) -> str:
        """The path of something below the address."""
        return "/".join((self.root, *parts))

    def manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        """The manifest of a finished result there, or None. One request.

        Errors: StoreError if the address cannot be read.
        """
        with self.errors("read"):
            found = self.read_json(stage, key, MANIFEST)
        if not isinstance(found, dict) or found.get("key") != key:
            return None  # half of one, where writing is not atomic
        return found if {"digest", "files", "stage"} <= found.keys() else None

    def find(self, store: Store, stage: str, key: str) -> tuple[Artifact, dict[str, Any]] | None:
        """What fetching it would give, and its manifest; None if it is not there."""
        manifest = self.manifest(stage, key)
        if manifest is None:
            return None
        folder = store.folder(stage, key)
        return Artifact(stage, key, folder, str(manifest["digest"])), manifest

    def fetch(self, store: Store, stage: str, key: str, told: Told = lambda *_: None) -> bool:
        """Bring a finished result into the local store, checked; False if there is none.

        Errors: StoreError if what is there is damaged, or cannot be read.
        """
        manifest = self.manifest(stage, key)
        if manifest is None:
            return False
        final = store.folder(stage, key)
        source = (stage, key, str(manifest["digest"])[:SHORT])
        with disk_errors(final, "write"):
            final.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(final) as part:
            self.download(source, manifest["files"], part / "data", told)
            write_json(part / MANIFEST, manifest)
        return True

    def bring(self, store: Store, artifact: Artifact, told: Told = lambda *_: None) -> bool:
        """Upload a finished result; False if its key is there already, whoever brought it: one that
        is whole stays, so that two machines do not replace each other's at every run.

        Errors: StoreError.
        """
        if self.manifest(artifact.stage, artifact.key) is not None:
            return False
        manifest = store.manifest(artifact.stage, artifact.key)
        assert manifest is not None
        target = (artifact.stage, artifact.key, artifact.digest[:SHORT])
        self.upload(artifact.folder / "data", manifest["files"], target, told)
        self.write_json(manifest, artifact.stage, artifact.key, MANIFEST)
        return True

    def upload(
        self,
        folder: Path,
        files: Mapping[str, Mapping[str, Any]],
        target: tuple[str, ...],
        told: Told = lambda *_: None,
    ) -> None:
        """Files of a folder, by name, below a place. Errors: StoreError."""
        whole, through = sum(int(one["bytes"]) for one in files.values()), 0
        for name, said in files.items():
            with self.errors("write to"):
                self.files.put_file(str(folder / name), self.place(*target, name))
            through += int(said["bytes"])
            told(through, whole)

    def download(
        self,
        source: tuple[str, ...],
        files: Mapping[str, Mapping[str, Any]],
        folder: Path,
        told: Told = lambda *_: None,
    ) -> None:
        """The same files the other way, each held against its digest. Errors: StoreError."""
        whole, through = sum(int(one["bytes"]) for one in files.values()), 0
        folder.mkdir(parents=True, exist_ok=True)
        for name, said in files.items():
            path = folder / _inside(name, self.address)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self.errors("read"):
                    self.files.get_file(self.place(*source, name), str(path))
            except FileNotFoundError as error:
                raise self.damaged(source, f"{name} is missing") from error
            if path.stat().st_size != said["bytes"] or file_digest(path) != said["sha256"]:
                raise self.damaged(source, f"{name} is not what its digest says")
            fsync_file(path)
            through += int(said["bytes"])
            told(through, whole)

    def read_json(self, *place: str) -> Any:
        """A small file; None if it is not there, or is no JSON. Raises what the service raises."""
        try:
            return json.loads(self.files.cat_file(self.place(*place)))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def write_json(self, value: Any, *place: str) -> None:
        """A small file. Errors: StoreError."""
        with self.errors("write to"):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            self.files.pipe_file(self.place(*place), text.encode())

    def remove(self, *place: str) -> None:
        """Whatever is below a place; nothing if there is nothing. Errors: StoreError."""
        with self.errors("write to"):
            self.files.invalidate_cache()
            found = self.files.find(self.place(*place))
            if found:
                self.files.rm(found)

    def damaged(self, source: tuple[str, ...], what: str) -> StoreError:
        """What to say of something there that is not what was brought."""
        where = "/".join((self.address, *source))
        return StoreError(
            f"The stored result {where} is damaged: {what}.",
            "Delete it there and run the same command again; only this stage is made anew.",
        )

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn whatever a service raises into one line that repeats nothing of it.

        A missing file is left to the caller when something is read.
        """
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            if doing == "read":
                raise
            raise self._refused(doing, "there is no such bucket or folder", CREATE) from error
        except PermissionError as error:
            raise self._refused(doing, "access was refused", RIGHTS) from error
        except Exception as error:
            name = type(error).__name__
            if name in NO_CREDENTIALS:
                raise self._refused(doing, "there are no credentials for it", RIGHTS) from None
            raise self._refused(doing, f"it did not answer as it should ({name})", LATER) from None

    def _refused(self, doing: str, why: str, remedy: str) -> StoreError:
        return StoreError(f"Cannot {doing} the store {self.address}: {why}.", remedy)


NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}
KEPT = "Results stay in the local store; the same command goes on from there."
CREATE = f"Create it, or correct the address. {KEPT}"
RIGHTS = (
    "Set credentials that may read and write there in the environment, such as AWS_PROFILE or "
    f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. {KEPT}"
)
LATER = f"Check the network and the address, or leave the remote store out. {KEPT}"


def described(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below a folder, as a manifest has them."""
    return {
        name.as_posix(): {
            "sha256": file_digest(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
        for name in folder_files(folder)
    }


def _inside(name: str, address: str) -> str:
    """A file's name that stays in its folder. Errors: StoreError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise StoreError(
            f"The store {address} names a file outside of its folder: {name!r}.",
            "Do not use this store; somebody may have changed it on purpose.",
        )
    return name
