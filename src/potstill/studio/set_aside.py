"""What was rejected, in the form of a row: generation keeps a sentence and a reply where curation
keeps a row.

In: what a `Rejected` record holds. Out: question, answers and where it is from, as far as they are
known, and the words for the rest. Knows no page.
"""

from __future__ import annotations

import json
from typing import Any

TITLES = {"focus": "Asked about", "reply": "The teacher wrote", "reasoning": "Reason given"}
"""What a page calls the parts of a rejected thing that no row has."""
KNOWN = frozenset({"chunk", "chunks", "answer", "row"})
"""Where a rejected thing keeps what `as_row` puts into a row's own fields."""


def as_row(held: dict[str, Any]) -> dict[str, Any]:
    """The rejected thing as a row: what it holds, and `question`, `answers` and `provenance` where
    it names them otherwise or the reply says them."""
    row = held.get("row")
    if isinstance(row, dict):  # judged: the row, and what the judge said of it
        return {**held, **row}
    said = _said(held.get("reply"))
    chunks = held.get("chunks")
    chunk = held.get("chunk") or (chunks[0] if isinstance(chunks, list) and chunks else "")
    found = dict(held)
    if question := held.get("question") or said.get("question"):
        found["question"] = str(question)
    answer = held.get("answer") or said.get("answer")
    if answer and not held.get("answers"):
        found["answers"] = [str(answer)]
    if chunk and not held.get("provenance"):
        found["provenance"] = {"chunk": str(chunk)}
    return found


def named(row: dict[str, Any]) -> str:
    """The line by which a list tells it from others; empty if nothing of it says anything."""
    parts = (row.get(one) for one in ("question", "focus", "source", "reply"))
    return next((str(one) for one in parts if one), "")


def _said(reply: Any) -> dict[str, Any]:
    """A reply's own fields, if it is one JSON object."""
    try:
        found = json.loads(reply) if isinstance(reply, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
