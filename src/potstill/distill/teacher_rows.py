"""Rows as a teacher with another tokenizer reads them.

In: its rows, and their spans. Out: `TeacherRows`. Knows nothing of how they were made (`pairs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potstill.models.align import Span

if TYPE_CHECKING:
    from potstill.distill.batches import Row


@dataclass(frozen=True)
class TeacherRows:
    """The same rows in the tokens of a teacher with another tokenizer."""

    rows: Sequence[Row]
    spans: Sequence[tuple[Span, ...]]
    """Of each row: pieces of text (`models/align.py`); the student's side is the first."""

    def some(self, numbers: Sequence[int]) -> TeacherRows:
        """Those rows alone."""
        return TeacherRows(
            [self.rows[number] for number in numbers], [self.spans[number] for number in numbers]
        )
