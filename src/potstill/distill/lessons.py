"""What every training of a run is taught with, in one hand.

In: a tokenizer, rows, a seed. Out: `Lessons`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.events import Emitter
from potstill.distill.batches import Row
from potstill.distill.teacher_rows import TeacherRows
from potstill.models.align import Words
from potstill.records import Example


@dataclass(frozen=True)
class Lessons:
    """Of the student, of its assistants, and of a model between two cuts."""

    tokenizer: Any
    """The teacher's."""
    rows: Sequence[Row]
    validation: Sequence[Row]
    examples: Sequence[Example]
    """Of the training rows."""
    seed: int
    events: Emitter
    aligned: tuple[TeacherRows, TeacherRows] | None = None
    """Training and validation rows in the teacher's tokens, if the student's are others."""
    words: tuple[Words, Words] | None = None
    """The student's and the teacher's, where there is `aligned`."""

    @property
    def taught(self) -> Sequence[Row]:
        """The training rows in the teacher's tokens."""
        return self.rows if self.aligned is None else self.aligned[0].rows
