"""Files that are either there whole or not at all.

In: bytes, JSON values, records. Out: atomic files, JSON Lines, digests of files and folders.
Knows nothing of stages or stores.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import InputError, StoreError

AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
BLOCK = 1 << 20
UNFINISHED = ".*.part"
"""Pattern of the names under which files are written before they are whole."""
WHOLE = "complete.json"
"""The mark of a folder of several files in which nothing changes any more: their sizes."""


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, read-only folder) into one clear line."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        able = "read" if doing.startswith("read") else "written"
        raise disk_refusal(f"Cannot {doing} {path}: {reason}.", error.errno, able) from error


def disk_refusal(message: str, number: int | None, able: str = "written") -> StoreError:
    """What to say when the system refused a file with that errno, and the way out."""
    full = number in {errno.ENOSPC, errno.EDQUOT}
    remedy = "Free some disk space" if full else f"Choose a folder that can be {able}"
    return StoreError(
        message, f"{remedy}, then run the same command again; what was finished is kept."
    )


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (POSIX; a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def mark_whole(folder: Path) -> None:
    """Flush a folder's files and write the mark that names them and their sizes."""
    sizes = {}
    with disk_errors(folder, "write"):
        for name in folder_files(folder):
            fsync_file(folder / name)
            sizes[name.as_posix()] = (folder / name).stat().st_size
    write_json(folder / WHOLE, sizes)


def is_whole(folder: Path) -> bool:
    """Whether the mark is there and every file has the size that it names."""
    try:
        sizes = read_json(folder / WHOLE)
        return isinstance(sizes, dict) and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, StoreError):
        return False


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part."""
    content = data.encode() if isinstance(data, str) else data
    part = _unfinished(path)
    with disk_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        fsync_folder(path.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` at the end; half of one is written anew.

    Errors: StoreError where the system refuses.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with disk_errors(target, "write"):
        part.mkdir(parents=True)
        yield part
        os.replace(part, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged one is a StoreError that names it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON: {error}.") from error


def write_records(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records as JSON Lines, atomically and streaming; returns how many."""
    part = _unfinished(path)
    count = 0
    with disk_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                for record in records:
                    file.write(record.model_dump_json() + "\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return count


def read_records(path: Path, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """Stream the records of a JSON Lines file. Errors: InputError names the file and the line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise InputError(
                    f"{path}, line {number}: not a valid {kind.__name__} ({where}: {first['msg']})."
                ) from error


def count_lines(path: Path) -> int:
    """Records of a JSON Lines file, without reading them."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """Every file below `folder`, as sorted relative paths."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def digests_of(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of each file below `folder`."""
    return {path.as_posix(): file_digest(folder / path) for path in folder_files(folder)}
