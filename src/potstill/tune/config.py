"""What a study file may say: which recipe, which fields are searched, for what, how long. Light.

In: plain values of a YAML file. Out: `StudyConfig`. Knows nothing of recipes' fields (`space.py`
checks them), or of how a search is done.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from potstill.core.fields import nearest
from potstill.tune.figures import FIGURES, is_validation, needed_level

Direction = Literal["minimize", "maximize"]


class Space(BaseModel):
    """The values that a field may take: a range of numbers, or a list of choices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float | None = Field(None, allow_inf_nan=False, description="Smallest number.")
    high: float | None = Field(None, allow_inf_nan=False, description="Largest number.")
    log: bool = Field(
        False, description="Draw the number's logarithm evenly: for values of several magnitudes."
    )
    step: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Only low, low + step, low + 2 step ..."
    )
    choices: tuple[Any, ...] | None = Field(
        None, min_length=2, description="The values themselves, of any kind that the field takes."
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> Space:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step:
                raise ValueError("choices go without low, high, log and step")
            return self
        if self.low is None or self.high is None:
            raise ValueError("it needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be smaller than high ({self.high:g})")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self


class PruneConfig(BaseModel):
    """When a trial is given up: its validations are worse than those of earlier trials."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    warmup_trials: int = Field(
        4, ge=1, description="Finished trials before the first one may be given up."
    )
    warmup_validations: int = Field(
        1,
        ge=0,
        description="Validations while training that every trial lives through; the one before the "
        "first step never counts.",
    )
    keep: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A trial goes on if its best validation so far is among this share of the "
        "finished trials at the same validation; 0.5 is the median rule.",
    )


class StudyConfig(BaseModel):
    """A search over a recipe's fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$",
        description="Name of the study's folder: lower-case letters, digits, - and _.",
    )
    description: str = Field("", description="One sentence for people.")
    recipe: str = Field(
        description="The recipe that is searched around: a built-in name, or a file beside the "
        "study."
    )
    set: tuple[str, ...] = Field(
        (), description="Fields that differ from the recipe in every trial: distill.epochs=2"
    )
    search: dict[str, Space] = Field(
        min_length=1, description="Field of the recipe, such as distill.learning_rate -> its space."
    )
    objective: dict[str, Direction] = Field(
        min_length=1, max_length=2, description="One figure or two, each minimize or maximize."
    )
    trials: int = Field(20, ge=1, le=100_000, description="Trials in all, over all sittings.")
    minutes: float | None = Field(
        None, gt=0, description="Longest time of one sitting; what is under way then goes on later."
    )
    seed: int = Field(17, ge=0, lt=2**31, description="Seed of the suggestions.")
    random_trials: int = Field(
        5, ge=1, description="Trials drawn by lot before suggestions follow from results."
    )
    parallel: int | Literal["auto"] = Field(
        1,
        description="Trials at once; they share the processor's cores evenly. auto: as many as "
        "cores and memory allow.",
    )
    prune: PruneConfig | None = Field(
        None, description="Give up poor trials early; unset: every trial is trained to its end."
    )

    @field_validator("parallel")
    @classmethod
    def _is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 256:
            raise ValueError("it must be a number from 1 to 256, or auto")
        return value

    @field_validator("objective")
    @classmethod
    def _is_known(cls, value: dict[str, Direction]) -> dict[str, Direction]:
        for name in value:
            if name not in FIGURES:
                hint = nearest(name, FIGURES) or f"known are {', '.join(FIGURES)}"
                raise ValueError(f"there is no figure {name}; {hint}")
            better = FIGURES[name].better
            if value[name] != better:
                raise ValueError(f"a search for the worst {name} helps nobody; {better} it")
        return value

    @model_validator(mode="after")
    def _can_prune(self) -> StudyConfig:
        if self.prune is None:
            return self
        if len(self.objective) > 1:
            raise ValueError(
                "prune needs one objective: of two, neither alone says that a trial is poor"
            )
        if not is_validation(next(iter(self.objective))):
            known = ", ".join(name for name in FIGURES if is_validation(name))
            raise ValueError(
                f"prune needs an objective that is measured while training: one of {known}"
            )
        if "distill.validations" in self.search:
            raise ValueError(
                "prune compares trials validation by validation, so distill.validations cannot "
                "be searched"
            )
        return self

    @property
    def until(self) -> str:
        """The last stage that a trial needs."""
        return "evaluate" if needed_level(self.objective) == "evaluate" else "distill"
