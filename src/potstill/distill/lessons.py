"""What every training of a run is taught with, in one hand.

In: a tokenizer, rows, a seed. Out: `Lessons`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.events import Emitter
from potstill.distill.batches import Row
from potstill.records import Example


@dataclass(frozen=True)
class Lessons:
    """Of the student, of its assistants, and of a model between two cuts."""

    tokenizer: Any
    """The teacher's."""
    rows: Sequence[Row]
    validation: Sequence[Row]
    examples: Sequence[Example]
    seed: int
    events: Emitter
