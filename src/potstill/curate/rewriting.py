"""A row with another question: the turns that ask it change with it, and nothing else does.

In: an Example. Out: an Example. Knows no reason for a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.records import Example, Turn


def asking_turn(example: Example) -> int | None:
    """The place of the last user turn that holds the question word for word."""
    if not example.question:
        return None
    for place in range(len(example.turns) - 1, -1, -1):
        turn = example.turns[place]
        if turn.role == "user" and example.question in turn.content:
            return place
    return None


def with_question(example: Example, question: str, **changes: Any) -> Example | None:
    """The row with `question` in place of its own, and other changed fields.

    Only the last place where the question stands is changed: a passage before it that holds the
    same words stays. None: no user turn holds the question, so it cannot be changed.
    """
    place = asking_turn(example)
    if place is None:
        return None
    before, _, after = example.turns[place].content.rpartition(example.question)
    return with_turn(example, place, before + question + after, question=question, **changes)


def with_turn(example: Example, place: int, content: str, **changes: Any) -> Example:
    """The row with another text of one turn, and other changed fields."""
    turns: Sequence[Turn] = (
        *example.turns[:place],
        Turn(role=example.turns[place].role, content=content),
        *example.turns[place + 1 :],
    )
    return example.model_copy(update={"turns": turns, **changes})
