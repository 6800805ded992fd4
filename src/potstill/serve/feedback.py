"""What users said of answers, kept so that nothing that was acknowledged is lost.

In: thumbs, corrections, flags. Out: rows of a SQLite database in write-ahead mode, committed and
on the disk before the client hears of it. Knows no HTTP and no model.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors
from potstill.errors import StoreError

SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
    id TEXT PRIMARY KEY,
    time TEXT NOT NULL,
    response TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    thumb TEXT,
    correction TEXT,
    flag TEXT,
    comment TEXT,
    messages TEXT NOT NULL,
    answer TEXT NOT NULL,
    citations TEXT NOT NULL
)
"""
FIELDS = (
    "id", "time", "response", "key", "model", "thumb", "correction", "flag", "comment",
    "messages", "answer", "citations",
)  # fmt: skip
NESTED = ("messages", "citations")
WAIT_SECONDS = 5.0


class FeedbackStore:
    """The database of one server. May be used by several threads, one at a time.

    Errors: StoreError if the file is no such database, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with disk_errors(path.parent, "create"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._database = sqlite3.connect(
                path, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")  # a commit is on the disk
            self._database.execute(SCHEMA)

    def add(self, **fields: Any) -> str:
        """Keep one; returns its id after it is on the disk. Errors: StoreError."""
        identity = f"fb-{uuid.uuid4().hex[:24]}"
        row = dict.fromkeys(FIELDS) | fields | {"id": identity, "time": _now()}
        for name in NESTED:
            row[name] = json.dumps(row[name], ensure_ascii=False)
        marks = ", ".join("?" * len(FIELDS))
        with self._lock, self._errors():
            self._database.execute(
                f"INSERT INTO feedback ({', '.join(FIELDS)}) VALUES ({marks})",
                [row[name] for name in FIELDS],
            )
        return identity

    def close(self) -> None:
        """Fold the log into the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _store_errors(self.path):
            yield


def read_feedback(path: Path) -> list[dict[str, Any]]:
    """All rows, oldest first, while a server may write. Errors: StoreError.

    Each: id, time, response, key, model, thumb, correction, flag, comment, messages, answer,
    citations.
    """
    if not path.exists():
        return []
    with _store_errors(path), closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        rows = database.execute(f"SELECT {', '.join(FIELDS)} FROM feedback ORDER BY time, id")
        found = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    for row in found:
        for name in NESTED:
            row[name] = json.loads(row[name])
    return found


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        hint = "Free some disk space." if full else "Restore it, or move it away."
        raise StoreError(f"The feedback store {path} refuses: {error}.", hint) from error


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
