"""Puts passages, sentences and questions into the words of a prompt.

In: a PromptConfig and texts. Out: conversations for the teacher, the user turn for the student.
Knows nothing of models. What a passage contains is never read as a placeholder.
"""

from __future__ import annotations

import json
import re

from potstill.generate.config import PromptConfig, Shot
from potstill.generate.filling import PLACEHOLDER, fill
from potstill.records import Turn

FIELDS = ("question", "reasoning", "answer")


def teacher_turns(prompt: PromptConfig, passage: str, focus: str, answer: str) -> tuple[Turn, ...]:
    """Instructions, worked examples, and the sentence to ask about, as a conversation.

    What all requests share comes first and the sentence last, so that an engine which keeps the
    beginning of a prompt computes it once.
    """
    turns = [Turn(role="system", content=prompt.system)] if prompt.system else []
    for shot in prompt.shots:
        asked = fill(prompt.ask, passage=shot.passage, focus=shot.focus, answer=shot.answer)
        turns += [
            Turn(role="user", content=asked),
            Turn(role="assistant", content=_reply(shot)),
        ]
    asked = fill(prompt.ask, passage=passage, focus=focus, answer=answer)
    return (*turns, Turn(role="user", content=asked))


def student_turn(prompt: PromptConfig, passage: str, question: str) -> str:
    """What the student is asked, word for word as in its training rows.

    Without a passage (asked from memory) the question stands alone.
    """
    return fill(prompt.student, passage=passage, question=question) if passage else question


def question_in(prompt: PromptConfig, turn: str) -> str:
    """The question in a user turn that was written as `student_turn` does; else the whole turn."""
    pieces = PLACEHOLDER.split(prompt.student)  # words, a placeholder's name, words, ...
    pattern = "".join(
        f"(?P<{piece}>.*)" if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)
    )
    try:
        found = re.fullmatch(pattern, turn, re.DOTALL)
    except re.error:  # a placeholder that stands there twice
        return turn
    return found["question"] if found else turn


def _reply(shot: Shot) -> str:
    return json.dumps({name: getattr(shot, name) for name in FIELDS}, ensure_ascii=False)
