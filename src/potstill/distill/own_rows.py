"""One's own rows, as plain dictionaries, as the rest of the system knows them.

In: a row in one of the common forms. Out: an `Example`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from potstill.errors import InputError
from potstill.records import Example, Provenance, Turn


def example_of(row: Mapping[str, Any] | Example, number: int) -> Example:
    """A row as the rest of the system knows it. Errors: InputError for another form."""
    if isinstance(row, Example):
        return row
    try:
        if "messages" in row:
            turns = [Turn(role=one["role"], content=one["content"]) for one in row["messages"]]
        else:
            asked, answer = row.get("prompt"), row.get("completion")
            if "question" in row:
                parts = (row.get("context"), row["question"])
                asked, answer = "\n\n".join(filter(None, parts)), row["answer"]
            turns = [Turn(role="user", content=asked), Turn(role="assistant", content=answer)]
        return Example(
            id=str(row.get("id", f"row-{number}")),
            turns=tuple(turns),
            provenance=Provenance(document=str(row.get("document", "")), chunk=""),
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise InputError(
            f"Row {number} is no conversation: it has {has or 'nothing'}.",
            "Give messages, or prompt and completion, or question and answer, all as text.",
        ) from error
