"""One question about one fact of one sentence: the kind for very small teachers.

Its fields are those of `generate` itself (pairs_per_chunk, prompt, attempts, ...); the work is in
`generate/focus.py` and `generate/questions.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FocusKind(BaseModel):
    """One request a fact; rows of kind qa whose answer is copied from its sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["focus"] = Field(
        "focus", description="One question about each fact, for small teachers."
    )
    turns: int = Field(
        1,
        ge=1,
        le=16,
        description="Above 1: questions about one chunk are put one after the other into "
        "conversations of up to so many, with the passage in the first turn.",
    )
