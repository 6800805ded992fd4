"""Decides about feedback: what may be learned from, and what the right answer is.

In: the feedback database, ids, a reviewer's decision. Out: the rows with their new state. A row is
accepted only if it has a right answer: the reviewer's, else the user's correction, else (after a
thumb up) the answer itself. Knows no model and no training.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from potstill.errors import UsageError
from potstill.serve.feedback import FeedbackStore, now, read_feedback

State = Literal["new", "accepted", "rejected"]
PREFIX = "fb-"


def right_answer(row: Mapping[str, Any]) -> str:
    """What should have been answered; empty if nobody said so."""
    said = row["right_answer"] or row["correction"]
    if not said and row["thumb"] == "up":
        said = row["answer"]
    return str(said or "").strip()


def review(
    path: Path,
    ids: Sequence[str],
    state: State,
    *,
    answer: str | None = None,
    note: str | None = None,
    reviewer: str | None = None,
) -> list[dict[str, Any]]:
    """Set the state of feedback, of all ids or of none; returns the rows as they are now.

    ids: whole, or their unmistakable beginnings. answer: the right one, of a single row; without
    it the one that an earlier review gave stays. reviewer: who decides; default: the name of the
    account. Errors: UsageError for an id that is not there or stands for several, an answer for
    several rows, and rows without a right answer that are to be accepted; StoreError.
    """
    if not ids:
        raise UsageError("Which feedback is decided about?", "Name its ids.")
    if answer is not None and (len(set(ids)) > 1 or state != "accepted" or not answer.strip()):
        raise UsageError(
            "An answer belongs to one row that is accepted.",
            "Accept that row alone: --accept ID --answer TEXT",
        )
    rows = {row["id"]: row for row in read_feedback(path)}
    chosen = [rows[_whole(one, rows)] for one in dict.fromkeys(ids)]
    decided = {
        "state": state,
        "reviewer": reviewer or getpass.getuser(),
        "reviewed": now(),
        "note": note,
    }
    if answer is not None:
        decided["right_answer"] = answer.strip()
    changed = [row | decided for row in chosen]
    if state == "accepted" and (lacking := [row["id"] for row in changed if not right_answer(row)]):
        raise UsageError(
            f"Nobody said what the right answer is: {', '.join(lacking)}.",
            "Write it: --accept ID --answer TEXT",
        )
    with closing(FeedbackStore(path)) as store:
        store.set_review((row["id"], decided) for row in chosen)
    return changed


def _whole(beginning: str, rows: Mapping[str, Any]) -> str:
    """The id that begins so. Errors: UsageError if none does, or several do."""
    if beginning in rows:
        return beginning
    full = beginning if beginning.startswith(PREFIX) else PREFIX + beginning
    found = [one for one in rows if one.startswith(full)] if len(full) > len(PREFIX) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{len(found)} rows of feedback begin with {full}.", "Write more of it.")
    raise UsageError(f"There is no feedback {beginning}.", "See it with: potstill feedback RUN")
