"""Loss weights and learning rates that change while training. Light: no torch here.

In: a number, or a `Schedule` out of a recipe; a step and the number of planned steps. Out: the
weight, or the share of the rate, at that step. Knows nothing of what is weighted, of losses or of
training.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

WSD_DECAY = 0.2
"""Share of the steps in which `wsd` decays."""


class Schedule(BaseModel):
    """A weight that goes from `start` to `end` between two points of the training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: float = Field(ge=0, description="The weight up to `begin`.")
    end: float = Field(ge=0, description="The weight from `until` on.")
    shape: Literal["linear", "cosine"] = Field(
        "linear",
        description="How it goes from one to the other. linear: evenly. cosine: slowly at both "
        "ends.",
    )
    begin: float = Field(
        0.0, ge=0, le=1, description="Share of the planned optimizer steps before the change."
    )
    until: float = Field(
        1.0, ge=0, le=1, description="Share of the planned optimizer steps at its end."
    )

    @model_validator(mode="after")
    def _goes_forward(self) -> Schedule:
        if self.begin >= self.until:
            raise ValueError(
                f"begin ({self.begin:g}) must be before until ({self.until:g}); "
                "a weight that stays the same is a plain number"
            )
        return self


def _kind(value: Any) -> str:
    return "schedule" if isinstance(value, dict | Schedule) else "number"


# Told apart by their form, so that a mistake in a schedule is not answered with "not a number".
Weight = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False), Tag("number")]
    | Annotated[Schedule, Tag("schedule")],
    Discriminator(_kind),
]
"""A recipe's weight of a loss term: a number of at least 0, or a schedule."""


def weight_at(weight: Weight, step: int, steps: int) -> float:
    """The weight at 0-based optimizer step `step` of `steps` planned ones.

    The first step stands at share 0 of the training and the last one at share 1, so that a
    schedule without `begin` and `until` really is at its end when the training is. A training of
    one step is at its start; steps past the plan are at its end.
    """
    if not isinstance(weight, Schedule):
        return float(weight)
    share = step / max(1, steps - 1)
    if share <= weight.begin:
        return weight.start
    if share >= weight.until:
        return weight.end
    passed = (share - weight.begin) / (weight.until - weight.begin)
    if weight.shape == "cosine":
        passed = 0.5 * (1 - math.cos(math.pi * passed))
    # As a mean of both ends, which rounding cannot carry beyond either of them by more than it.
    return (1 - passed) * weight.start + passed * weight.end


def ever(weight: Weight) -> bool:
    """Whether the weight is above 0 at any time, so that its term must be prepared for."""
    return highest(weight) > 0


def highest(weight: Weight) -> float:
    """The largest value that the weight takes."""
    return max(weight.start, weight.end) if isinstance(weight, Schedule) else float(weight)


def rate_factor(
    step: int, steps: int, warmup: int, schedule: Literal["cosine", "wsd", "linear"]
) -> float:
    """Share of the highest learning rate at 0-based `step` of `steps`; never 0 within them.

    After `warmup` steps up: cosine to zero, straight to zero (linear), or stable and then straight
    down over the last fifth (wsd).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    decay = max(1, steps - warmup if schedule == "linear" else round(WSD_DECAY * steps))
    return max(0.0, min(1.0, (steps - step) / decay))
