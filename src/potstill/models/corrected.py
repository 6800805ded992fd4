"""Which teacher a run goes on with: the one that was corrected on its rows, or the one it named.

In: the correct stage's artifact, the recipe's teacher. Out: a model reference. Knows nothing of
how a teacher is corrected (`distill/correction.py`).
"""

from __future__ import annotations

from potstill.core.stage import Artifact

FOLDER = "model"
"""Where the correct stage leaves its model; absent if there is none that is better."""


def corrected(correct: Artifact, teacher: str) -> str:
    """The corrected teacher's folder if there is one, else `teacher` itself."""
    folder = correct.path(FOLDER)
    return str(folder) if folder.is_dir() else teacher
