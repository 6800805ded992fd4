"""One process at a time in a folder, and which one that is.

In: a folder. Out: the right to write in it, or one clear error; who has it. Knows nothing of what
is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from potstill.core.files import disk_errors, read_json, write_json
from potstill.core.processes import mark_of
from potstill.errors import StoreError

HOLDER = ".process"


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Make the folder and hold it. what: "The run x".

    Errors: StoreError if another process holds it.
    """
    with disk_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"{what} is already running in another process.",
                "Watch it there, or stop it first.",
            ) from error
    with held:
        own = os.getpid()
        write_json(folder / HOLDER, {"process": own, "mark": mark_of(own)})
        try:
            yield
        finally:
            (folder / HOLDER).unlink(missing_ok=True)


def holder(folder: Path) -> int | None:
    """The id of the process that holds the folder; None if nobody does.

    Takes no lock, so that to look never stands in the way of who wants to begin.
    """
    try:
        said = read_json(folder / HOLDER)
        process, mark = int(said["process"]), str(said["mark"])
    except (OSError, StoreError, KeyError, TypeError, ValueError):
        return None
    return process if mark and mark_of(process) == mark else None
