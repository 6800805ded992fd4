"""What was answered, one row a request, and the windows that were compared: never a word of it.

In: figures of answered requests, verdicts. Out: rows of a SQLite database in write-ahead mode, the
newest so many. No question and no answer is in it; an embedding says what a question is about, so
the file can be read by its owner alone. Knows no HTTP, no model and no statistics.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors
from potstill.errors import StoreError, UsageError

MOST_WINDOWS = 10_000
WAIT_SECONDS = 5.0
TABLES = """
CREATE TABLE IF NOT EXISTS request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    response TEXT NOT NULL, time REAL NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    variant TEXT NOT NULL, key TEXT NOT NULL, characters INTEGER NOT NULL, words INTEGER NOT NULL,
    language TEXT NOT NULL, answer_tokens INTEGER NOT NULL, confidence REAL,
    refused INTEGER NOT NULL, finish TEXT NOT NULL, seconds REAL NOT NULL, first_token REAL,
    encoder TEXT NOT NULL, embedding BLOB
);
CREATE INDEX IF NOT EXISTS request_of_variant ON request (variant, route, id);
CREATE TABLE IF NOT EXISTS window (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL, variant TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    requests INTEGER NOT NULL, level REAL NOT NULL, alarm INTEGER NOT NULL,
    dismissed REAL, alerted TEXT NOT NULL, verdict TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS first_window (
    variant TEXT NOT NULL, student TEXT NOT NULL, signal TEXT NOT NULL, samples TEXT NOT NULL,
    PRIMARY KEY (variant, student, signal)
);
"""
WINDOW = (
    "id", "time", "variant", "first", "last", "requests", "level", "alarm", "dismissed", "alerted",
    "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One answered request. time: seconds since 1970. variant: which student answered. refused: the
    answer declines. confidence: mean log-probability of its tokens in nats, or None. encoder,
    embedding: whose vector, float16 bytes; "" and None without one."""

    response: str
    time: float
    route: str
    model: str
    variant: str
    key: str
    characters: int
    words: int
    language: str
    answer_tokens: int
    confidence: float | None
    refused: bool
    finish: str
    seconds: float
    first_token: float | None
    encoder: str = ""
    embedding: bytes | None = None


ROW = tuple(one.name for one in fields(Row))


class TrafficStore:
    """The database of one server, or of one that looks at it. Threads may share it.

    keep: so many newest requests. Errors: StoreError if the file is no such database, or the disk
    refuses.
    """

    def __init__(self, path: Path, keep: int = 50_000) -> None:
        self.path, self.keep = path, keep
        self._lock = threading.Lock()
        with disk_errors(path.parent, "create"):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._errors():
            self._database = sqlite3.connect(
                path, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            weakref.finalize(self, self._database.close)  # also if what follows fails
            self._database.execute("PRAGMA journal_mode=WAL")
            # A crash of the machine may cost the last rows, never the file.
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(TABLES)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows in one transaction, and forget the oldest. Errors: StoreError."""
        marks = ", ".join("?" * len(ROW))
        with self._lock, self._errors(), self._transaction():
            self._database.executemany(
                f"INSERT INTO request ({', '.join(ROW)}) VALUES ({marks})",
                [[getattr(row, name) for name in ROW] for row in rows],
            )
            self._database.execute(
                "DELETE FROM request WHERE id <= (SELECT MAX(id) FROM request) - ?", (self.keep,)
            )

    def waiting(self, variant: str, routes: Sequence[str], limit: int) -> list[tuple[int, Row]]:
        """The oldest requests of these routes that no window holds yet, at most `limit`."""
        marks = ", ".join("?" * len(routes))
        with self._lock, self._errors():
            found = self._database.execute(
                f"SELECT id, {', '.join(ROW)} FROM request WHERE variant = ? AND route IN ({marks})"
                " AND id > COALESCE((SELECT MAX(last) FROM window WHERE variant = ?), 0)"
                " ORDER BY id LIMIT ?",
                (variant, *routes, variant, limit),
            ).fetchall()
        return [(row[0], Row(**dict(zip(ROW, row[1:], strict=True)))) for row in found]

    def newest(self, limit: int) -> list[Row]:
        """The newest requests, oldest first, without their vectors."""
        names = [name for name in ROW if name not in ("encoder", "embedding")]
        with self._lock, self._errors():
            found = self._database.execute(
                f"SELECT {', '.join(names)} FROM request ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        return [Row(**dict(zip(names, row, strict=True))) for row in reversed(found)]

    def count(self) -> int:
        """Requests that are kept."""
        with self._lock, self._errors():
            return int(self._database.execute("SELECT COUNT(*) FROM request").fetchone()[0])

    def variants(self, routes: Sequence[str]) -> list[str]:
        """Which students have answered there."""
        marks = ", ".join("?" * len(routes))
        with self._lock, self._errors():
            found = self._database.execute(
                f"SELECT DISTINCT variant FROM request WHERE route IN ({marks}) ORDER BY variant",
                tuple(routes),
            ).fetchall()
        return [str(row[0]) for row in found]

    def first_window(self, variant: str, student: str) -> dict[str, list[float]]:
        """The values that live signals are compared with."""
        with self._lock, self._errors():
            found = self._database.execute(
                "SELECT signal, samples FROM first_window WHERE variant = ? AND student = ?",
                (variant, student),
            ).fetchall()
        return {name: json.loads(samples) for name, samples in found}

    def add_window(
        self,
        variant: str,
        ids: Sequence[int],
        level: float,
        verdict: Mapping[str, Any],
        student: str,
        first: Mapping[str, Sequence[float]],
    ) -> dict[str, Any]:
        """Keep a window's verdict, and with it values that later windows are compared with."""
        with self._lock, self._errors(), self._transaction():
            for signal, samples in first.items():
                self._database.execute(
                    "INSERT OR IGNORE INTO first_window VALUES (?, ?, ?, ?)",
                    (variant, student, signal, json.dumps([float(one) for one in samples])),
                )
            made = self._database.execute(
                "INSERT INTO window (time, variant, first, last, requests, level, alarm, alerted,"
                " verdict) VALUES (?, ?, ?, ?, ?, ?, ?, '', ?)",
                (time.time(), variant, ids[0], ids[-1], len(ids), level, verdict["alarm"],
                 json.dumps(verdict, ensure_ascii=False)),
            ).lastrowid  # fmt: skip
            self._database.execute(
                "DELETE FROM window WHERE id <= (SELECT MAX(id) FROM window) - ?", (MOST_WINDOWS,)
            )
        return next(one for one in self.windows(1) if one["id"] == made)

    def windows(self, limit: int = MOST_WINDOWS) -> list[dict[str, Any]]:
        """The newest windows, oldest first: id, time, variant, first, last (ids of requests),
        requests, level, alarm, dismissed (when, or None), alerted ("", sent, failed), verdict."""
        with self._lock, self._errors():
            found = self._database.execute(
                f"SELECT {', '.join(WINDOW)} FROM window ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        rows = [dict(zip(WINDOW, row, strict=True)) for row in reversed(found)]
        for row in rows:
            row["alarm"], row["verdict"] = bool(row["alarm"]), json.loads(row["verdict"])
        return rows

    def alerted(self, window: int, outcome: str) -> None:
        """Note what became of an alert."""
        with self._lock, self._errors():
            self._database.execute("UPDATE window SET alerted = ? WHERE id = ?", (outcome, window))

    def dismiss(self, window: int) -> None:
        """Mark an alarm as false. Errors: UsageError if there is no such alarm."""
        with self._lock, self._errors():
            done = self._database.execute(
                "UPDATE window SET dismissed = ? WHERE id = ? AND alarm = 1", (time.time(), window)
            ).rowcount
        if not done:
            alarms = [str(one["id"]) for one in self.windows() if one["alarm"]]
            raise UsageError(
                f"There is no alarm {window}.",
                f"Alarms: {', '.join(alarms[-20:])}." if alarms else "There was none so far.",
            )

    def close(self) -> None:
        """Fold the log into the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk may have ended it already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:  # ValueError: JSON that somebody changed
            full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
            hint = "Free some disk space." if full else "Restore it, or move it away."
            raise StoreError(f"The traffic store {self.path} refuses: {error}.", hint) from error


def open_existing(path: Path) -> TrafficStore | None:
    """The store of a service, to look at; None where there was none yet. Errors: StoreError."""
    return TrafficStore(path) if path.exists() else None
