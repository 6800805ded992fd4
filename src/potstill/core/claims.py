"""One process at a time in a folder.

In: a folder. Out: the right to write in it, or one clear error. Knows nothing of what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from potstill.core.files import disk_errors
from potstill.errors import StoreError


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
        yield
