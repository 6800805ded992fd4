"""What can be set about an improvement. Light: pydantic only.

In: fields. Out: `ImproveConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ImproveConfig(BaseModel):
    """Which rows an improvement learns from, and which it is judged by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replay: float = Field(
        4.0, ge=0, le=1000, description="Old training rows for each new one, drawn by the seed."
    )
    held_out: float = Field(
        0.3, gt=0, lt=0.9, description="Share of the questions that the candidate is judged by."
    )
    validation: float = Field(
        0.1, ge=0, lt=0.5, description="Share of the questions that early stopping looks at too."
    )
    fewest: int = Field(
        10, ge=4, description="An improvement needs at least so many accepted questions."
    )
    mask: bool = Field(False, description="Put [EMAIL], [PHONE] ... in the place of personal data.")

    @model_validator(mode="after")
    def _leave_some(self) -> ImproveConfig:
        if self.held_out + self.validation > 0.9:
            raise ValueError("held_out and validation leave too little to learn from")
        return self
