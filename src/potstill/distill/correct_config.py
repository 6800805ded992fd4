"""What can be set about the teacher's correction, and what it will cost. Light: no torch here.

In: the recipe's `correct` section, the figures of earlier stages. Out: `CorrectConfig` and the
training that it stands for; facts, figures. Knows nothing of how training works.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from potstill.core.costs import seconds
from potstill.core.stage import Facts, Figures
from potstill.distill.config import DistillConfig
from potstill.distill.launch import held_by
from potstill.distill.loading import (
    BYTES_A_WEIGHT,
    CHECKPOINT_BYTES,
    LIBRARIES,
    activation_bytes,
)
from potstill.distill.objective import Tokens
from potstill.distill.plan import (
    READING_RATE,
    TRAINING_RATE,
    check_sharding,
    computed_share,
    row_tokens,
)
from potstill.distill.training_config import TrainingConfig
from potstill.models import refs
from potstill.models.corrected import FOLDER
from potstill.models.size import expected_parameters, folder_parameters


class CorrectConfig(TrainingConfig):
    """The teacher is fine-tuned on the training rows before it teaches.

    Source: Sreenivas et al. 2024, arXiv:2408.11796 (teacher correction).
    """

    method: Literal["none", "full", "lora"] = Field(
        "none",
        description="none: the teacher is used as it came. full: all of its weights are trained "
        "on the rows' text first. lora: low-rank adapters are, and merged.",
    )
    teacher: str = Field("", description="Model reference of the teacher.")
    tokens: Tokens = Field("all", description="Tokens that the cross-entropy counts.")
    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="AdamW's highest learning rate.")

    @model_validator(mode="after")
    def _can_be_in_parts(self) -> CorrectConfig:
        if self.method == "lora" and self.sharding != "none":
            raise ValueError(
                f"sharding: {self.sharding} is for all weights; with method: lora use "
                "sharding: none"
            )
        return self

    @property
    def training(self) -> DistillConfig:
        """The same as the settings of a training by the cross-entropy alone."""
        shared = {name: getattr(self, name) for name in TrainingConfig.model_fields}
        return DistillConfig(
            **shared,
            teacher=self.teacher,
            adapter="lora" if self.method == "lora" else "none",
            kd_weight=0.0,
            ce_weight=1.0,
            ce_tokens=self.tokens,
        )


def facts(config: CorrectConfig, project: Path) -> Facts:
    """The teacher's identity, if it is to be corrected. Errors: ModelError."""
    if config.method == "none":
        return {}
    check_sharding(config, "correct")
    return {"teacher": refs.digest(refs.parse(config.teacher))}


def estimate(config: CorrectConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """One training of the teacher, and its passes over the held-out rows; nothing if it is off."""
    if config.method == "none":
        return {"seconds": 1.0, "memory_bytes": 5e7}
    teacher = expected_parameters(config.teacher)
    length = min(row_tokens(earlier), config.sequence_tokens)
    rows = earlier["curate"]["train_rows"] * length
    budget = min(config.epochs * rows, config.max_tokens or float("inf"))
    held_out = min(earlier["curate"]["validation_rows"] * length, config.validation_tokens)
    computed = computed_share(config, earlier)
    spent = 20 + seconds(budget * computed, TRAINING_RATE / teacher)
    spent += seconds((config.validations + 3) * held_out * computed, READING_RATE / teacher)
    kind = "lora" if config.method == "lora" else "none"
    activations = activation_bytes(config, teacher, config.micro_tokens)
    return {
        "parameters": teacher,
        "tokens": round(budget),
        "seconds": spent,
        "memory_bytes": (LIBRARIES + (BYTES_A_WEIGHT[kind] + 4) * teacher + activations)
        * held_by(config),
        # Checkpoints go when training is done.
        "disk_bytes": (2 * CHECKPOINT_BYTES[kind] + 2) * teacher,
    }


def counts(data: Path) -> Figures:
    """The corrected teacher's size; nothing if the teacher stays as it came."""
    found = folder_parameters(data / FOLDER)
    return {"parameters": found} if found else {}
