"""The assistants between teacher and student, as a recipe names them. Light: no torch here.

In: entries of `distill.assistants`. Out: `AssistantConfig`. Knows nothing of how one is made
(`chain.py`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AssistantConfig(BaseModel):
    """A model between teacher and student in size: it learns from the one before it and teaches
    the next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters_ratio: float = Field(
        gt=0, lt=1, description="Largest share of the teacher's parameters that it may have."
    )
    epochs: float | None = Field(
        None, gt=0, le=1000, description="Passes over the training rows; unset: the section's."
    )
    max_tokens: int | None = Field(
        None, gt=0, description="Its budget of tokens; unset: the section's."
    )
