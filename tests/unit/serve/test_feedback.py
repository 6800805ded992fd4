"""What was acknowledged is there, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.errors import StoreError
from potstill.serve.feedback import FeedbackStore, read_feedback

ROW = {
    "response": "chatcmpl-1",
    "key": "",
    "model": "tiny",
    "thumb": "down",
    "correction": "1250 litres",
    "messages": [{"role": "user", "content": "How many litres? \u00e9"}],
    "answer": "12",
    "citations": [],
}
WRITER = """
import sys
from pathlib import Path
from potstill.serve.feedback import FeedbackStore
store = FeedbackStore(Path(sys.argv[1]))
while True:
    row = dict(response="r", key="", model="m", messages=[], answer="", citations=[])
    print(store.add(thumb="up", **row), flush=True)
"""


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    assert read_feedback(path) == []
    store = FeedbackStore(path)
    made = store.add(**ROW)
    (row,) = read_feedback(path)  # while the server has it open
    assert row["id"] == made
    assert {name: row[name] for name in ROW} == ROW
    assert row["flag"] is row["comment"] is None
    store.close()
    FeedbackStore(path).close()
    assert len(read_feedback(path)) == 1


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
        told += [line.strip() for line in process.stdout if line.endswith("\n")]
    there = {row["id"] for row in read_feedback(path)}
    assert set(told) <= there


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    store.add(**ROW)
    store._database.execute("PRAGMA max_page_count=1")
    with pytest.raises(StoreError, match=r"full.*Free some disk space"):
        store.add(**(ROW | {"answer": "x" * 100_000}))
    store._database.execute("PRAGMA max_page_count=100000")
    store.add(**ROW)
    assert len(read_feedback(store.path)) == 2
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        FeedbackStore(path)
    with pytest.raises(StoreError, match="not a database"):
        read_feedback(path)
