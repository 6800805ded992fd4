"""How a run's student is asked, and what a row of feedback asked.

In: a run. Out: the user turn for a passage and a question; a row's question. Light: the review of
feedback needs it where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.generate import PromptConfig, student_turn
from potstill.improve.candidates import Ask, question_in
from potstill.pipeline import Run


def asking(this: Run) -> Ask:
    """How the run's student is asked."""
    prompt = PromptConfig.model_validate(this.record["recipe"]["generate"]["prompt"])
    return lambda passage, question: student_turn(prompt, passage, question)


def question_of(this: Run, row: Mapping[str, Any]) -> str:
    """What a row of a run's feedback is about: the question alone. row: as `read_feedback` has
    it."""
    return question_in(row, asking(this))
