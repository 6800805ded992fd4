"""What a reviewer decides is kept whole or not at all, also in a database of an earlier version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import UsageError
from potstill.serve.feedback import SCHEMA, FeedbackStore, read_feedback
from potstill.serve.review import review, right_answer

ROW: dict[str, Any] = {
    "response": "chatcmpl-1",
    "key": "",
    "model": "tiny",
    "messages": [{"role": "user", "content": "How many litres?"}],
    "answer": "12",
    "citations": [],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.sqlite"


def stored(path: Path, *rows: dict[str, Any]) -> list[str]:
    with closing(FeedbackStore(path)) as store:
        return [store.add(**(ROW | row)) for row in rows]


def test_a_database_of_the_first_version_is_read_and_brought_up_to_date(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        old.execute(SCHEMA)
        old.execute(
            "INSERT INTO feedback VALUES ('fb-old', '2026-01-01', 'r', '', 'm', 'up', NULL, NULL,"
            " NULL, '[]', 'yes', '[]')"
        )
        old.commit()
    (row,) = read_feedback(path)  # it is only looked at
    assert (row["state"], row["variant"], row["reviewer"]) == ("new", "", None)
    with closing(sqlite3.connect(path)) as old:
        assert len(old.execute("PRAGMA table_info(feedback)").fetchall()) == 12
    (made,) = stored(path, {"thumb": "down", "variant": "small-2"})
    rows = {row["id"]: row for row in read_feedback(path)}
    assert rows["fb-old"] | {"state": ""} == row | {"state": ""}
    assert rows[made]["variant"] == "small-2"
    FeedbackStore(path).close()  # a second time there is nothing left to do
    assert len(read_feedback(path)) == 2


def test_decisions_are_kept_with_who_and_why(path: Path) -> None:
    up, down, bare = stored(
        path, {"thumb": "up"}, {"thumb": "down", "correction": "1250 "}, {"thumb": "down"}
    )
    review(path, [up, down], "accepted", note="checked", reviewer="ada")
    review(path, [bare[:8]], "accepted", answer=" 1250 litres ")
    rows = {row["id"]: row for row in read_feedback(path)}
    assert [rows[one]["state"] for one in (up, down, bare)] == ["accepted"] * 3
    assert (rows[up]["reviewer"], rows[up]["note"]) == ("ada", "checked")
    assert rows[bare]["reviewer"]
    assert [right_answer(rows[one]) for one in (up, down, bare)] == ["12", "1250", "1250 litres"]
    review(path, [bare], "rejected")
    review(path, [bare], "accepted")  # the answer that was written before stays
    assert right_answer({row["id"]: row for row in read_feedback(path)}[bare]) == "1250 litres"


def test_mistakes_change_nothing(path: Path) -> None:
    up, bare = stored(path, {"thumb": "up"}, {"thumb": "down"})
    mistakes: list[tuple[list[str], dict[str, Any], str]] = [
        ([up, bare], {}, "Nobody said what the right answer is"),
        ([up, "fb-none"], {}, "There is no feedback fb-none"),
        (["fb-"], {}, "There is no feedback fb-"),
        ([up, bare], {"answer": "x"}, "An answer belongs to one row"),
        ([bare], {"answer": "  "}, "An answer belongs to one row"),
        ([], {}, "Which feedback"),
    ]
    for ids, more, words in mistakes:
        with pytest.raises(UsageError, match=words):
            review(path, ids, "accepted", **more)
    with pytest.raises(UsageError, match="An answer belongs"):
        review(path, [up], "rejected", answer="x")
    assert {row["state"] for row in read_feedback(path)} == {"new"}


def test_a_review_while_a_server_has_the_database_open(path: Path) -> None:
    with closing(FeedbackStore(path)) as server:
        made = server.add(**ROW, thumb="up")
        review(path, [made], "accepted")
        server.add(**ROW, thumb="down")
    assert [row["state"] for row in read_feedback(path)] == ["accepted", "new"]
