"""What users said of answers, kept so that nothing that was acknowledged is lost.

In: thumbs, corrections, flags, and what a reviewer decided about them (`review.py`). Out: rows of a
SQLite database in write-ahead mode, committed and on the disk before the client hears of it. A
database of an earlier version gets the columns that it lacks. Knows no HTTP and no model.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
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
LATER = {
    "variant": "TEXT NOT NULL DEFAULT ''",
    "state": "TEXT NOT NULL DEFAULT 'new'",
    "reviewer": "TEXT",
    "reviewed": "TEXT",
    "note": "TEXT",
    "right_answer": "TEXT",
}
"""Columns that came after the first version, with their definitions."""
FIELDS = (
    "id", "time", "response", "key", "model", "thumb", "correction", "flag", "comment",
    "messages", "answer", "citations", *LATER,
)  # fmt: skip
GIVEN = tuple(name for name in FIELDS if name not in LATER or name == "variant")
"""What is known when feedback comes; the rest is a reviewer's."""
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
            weakref.finalize(self, self._database.close)  # also if what follows fails
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")  # a commit is on the disk
            self._database.execute(SCHEMA)
            self._add_columns()

    def _add_columns(self) -> None:
        """Bring a database of an earlier version up to date; two processes may try at once."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            there = columns_of(self._database)
            for name, definition in LATER.items():
                if name not in there:
                    self._database.execute(f"ALTER TABLE feedback ADD COLUMN {name} {definition}")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def add(self, **fields: Any) -> str:
        """Keep one; returns its id after it is on the disk. Errors: StoreError."""
        identity = f"fb-{uuid.uuid4().hex[:24]}"
        row = dict.fromkeys(GIVEN) | {"variant": ""} | fields | {"id": identity, "time": now()}
        for name in NESTED:
            row[name] = json.dumps(row[name], ensure_ascii=False)
        marks = ", ".join("?" * len(GIVEN))
        with self._lock, self._errors():
            self._database.execute(
                f"INSERT INTO feedback ({', '.join(GIVEN)}) VALUES ({marks})",
                [row[name] for name in GIVEN],
            )
        return identity

    def set_review(self, decided: Iterable[tuple[str, Mapping[str, str | None]]]) -> None:
        """Write (id, columns of the review) of several rows: all of them or none.
        Errors: StoreError."""
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for identity, columns in decided:
                    marks = ", ".join(f"{name} = ?" for name in columns)
                    self._database.execute(
                        f"UPDATE feedback SET {marks} WHERE id = ?", [*columns.values(), identity]
                    )
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

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
    citations; variant (the version that answered), state (new, accepted, rejected), reviewer,
    reviewed (when), note, right_answer (the reviewer's).
    """
    if not path.exists():
        return []
    with _store_errors(path), closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        there = columns_of(database)
        names = [name for name in FIELDS if name in there]
        rows = database.execute(f"SELECT {', '.join(names)} FROM feedback ORDER BY time, id")
        unreviewed: dict[str, Any] = dict.fromkeys(FIELDS) | {"variant": "", "state": "new"}
        found = [unreviewed | dict(zip(names, row, strict=True)) for row in rows]
    for row in found:
        for name in NESTED:
            row[name] = json.loads(row[name])
    return found


def columns_of(database: sqlite3.Connection) -> set[str]:
    """The columns that a database has; none if it has not the table."""
    return {str(row[1]) for row in database.execute("PRAGMA table_info(feedback)")}


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        hint = "Free some disk space." if full else "Restore it, or move it away."
        raise StoreError(f"The feedback store {path} refuses: {error}.", hint) from error


def now() -> str:
    """The time, in UTC, as rows have it."""
    moment = time.time()
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
    )
