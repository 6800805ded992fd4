"""What every stage that measures may be told. Light: pydantic only.

In: fields of a recipe's section. Out: `MeasuringConfig`. Knows nothing of what is measured.
"""

from __future__ import annotations

from pydantic import Field

from potstill.core.stage import StageConfig


class MeasuringConfig(StageConfig):
    """How sure the figures are said to be."""

    resamples: int = Field(
        2000, ge=100, le=100_000, description="Bootstrap resamples behind each interval."
    )
    level: float = Field(
        0.95, gt=0.5, lt=1.0, description="Coverage of the intervals, such as 0.95."
    )
