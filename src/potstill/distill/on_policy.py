"""What can be set about training on the student's own answers. Light: no torch here.

In: the recipe's `distill.on_policy` section. Out: `OnPolicyConfig`. Knows nothing of how rollouts
are generated (`decoding.py`) or mixed with rows (`rollouts.py`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.files import file_digest
from potstill.distill.schedules import Schedule, Weight, ever, highest, weight_at
from potstill.errors import InputError

DRAWING = ("temperature", "top_p", "max_new_tokens", "batch_tokens")
"""Fields that say how answers are generated."""


class OnPolicyConfig(BaseModel):
    """Rollouts: the student's own answers to the rows' prompts, judged by the live teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Weight = Field(
        0.0,
        description="Share of rows whose answer is replaced by the student's own, from 0 (the data "
        "alone) to 1; a number or a schedule. The cross-entropy does not count there.",
    )
    temperature: float = Field(
        1.0, ge=0, le=20, description="At which answers are drawn; 0 takes the likeliest tokens."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the smallest set of tokens that has this mass."
    )
    max_new_tokens: int = Field(
        128, ge=1, description="Longest answer; a longer one is cut, marked and counted."
    )
    refresh_steps: int = Field(
        4,
        ge=1,
        description="Optimizer steps for which answers are generated at once, by the student as it "
        "then is: fewer are closer to the student, more are faster.",
    )
    batch_tokens: int = Field(
        8192,
        ge=16,
        description="Most tokens, prompts and answers, whose keys and values are held at once "
        "while answers are generated: memory.",
    )
    allow_endless: bool = Field(
        False, description="Go on though nearly all answers are cut, as the student never stops."
    )
    replay: str | None = Field(
        None,
        description="A rollouts.jsonl of an earlier training of the same rows, below the project: "
        "train on its answers and generate none.",
    )

    @property
    def used(self) -> bool:
        """Whether the share is ever above 0."""
        return ever(self.share)

    @property
    def mean_share(self) -> float:
        """The share over the whole training, about."""
        return sum(weight_at(self.share, step, 101) for step in range(101)) / 101

    @property
    def nothing_else(self) -> bool:
        """Whether the share is 1 all the time."""
        share = self.share
        least = min(share.start, share.end) if isinstance(share, Schedule) else share
        return least >= 1

    def below(self, project: Path) -> OnPolicyConfig:
        """The same with the path of `replay` made whole."""
        if self.replay is None:
            return self
        return self.model_copy(update={"replay": str(project / self.replay)})

    def facts(self, project: Path | None = None) -> dict[str, str]:
        """The digest of what is replayed, if anything is. project: where it must lie below.

        Errors: InputError if it is no file, or not there.
        """
        if self.replay is None:
            return {}
        path = ((project or Path()) / self.replay).resolve()
        if not path.is_file():
            raise InputError(
                f"{path} (distill.on_policy.replay) is no file.",
                "Name the rollouts.jsonl of an earlier training.",
            )
        if project is not None and not path.is_relative_to(project.resolve()):
            raise InputError(
                f"{path} (distill.on_policy.replay) is outside of the project {project.resolve()}.",
                "Copy the file into the project, or choose a wider project folder with --project.",
            )
        return {"rollouts": file_digest(path)}

    @model_validator(mode="after")
    def _fits_together(self) -> OnPolicyConfig:
        if highest(self.share) > 1:
            raise ValueError("on_policy.share is a share of rows, from 0 to 1")
        if self.replay is not None and not self.used:
            raise ValueError("on_policy.replay does nothing while on_policy.share is 0")
        fields = type(self).model_fields
        given = [name for name in DRAWING if getattr(self, name) != fields[name].default]
        if self.replay is not None and given:
            raise ValueError(
                f"on_policy.replay generates no answers, so {', '.join(given)} cannot be given; "
                "leave it out"
            )
        return self
