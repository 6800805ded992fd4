"""What can be set about low-rank adapters. Light: no torch here.

In: the recipe's `distill.lora` section, or the same fields in Python. Out: `LoraConfig`. Knows
nothing of training.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

AdapterKind = Literal["none", "lora", "dora", "qlora"]
Precision = Literal["full", "8bit", "4bit"]


class LoraConfig(BaseModel):
    """Low-rank adapters, for `adapter: lora`, `dora` and `qlora`; merged into the weights before
    saving."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, le=1024, description="Rank of the two small matrices.")
    alpha: float = Field(
        32.0,
        gt=0,
        description="The update is scaled by alpha / rank, or by alpha / sqrt(rank) with "
        "rank_stabilised.",
    )
    rank_stabilised: bool = Field(
        False,
        description="Scale the update by alpha / sqrt(rank), so that a higher rank does not learn "
        "more slowly (rsLoRA, arXiv:2312.03732).",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the first matrix.")
    init: Literal["kaiming", "gaussian", "orthogonal"] = Field(
        "kaiming",
        description="How the first matrix starts; the second is zero. orthogonal: both start as "
        "orthogonal halves whose product is zero; needs an even rank.",
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear",
        description="Names of the linear layers that get an adapter, such as q_proj. all-linear: "
        "every linear layer but the output layer.",
    )

    @property
    def scaling(self) -> float:
        """Factor of the update B A."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @model_validator(mode="after")
    def _fits_together(self) -> LoraConfig:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("init: orthogonal needs an even rank")
        if not self.target_modules:
            raise ValueError("target_modules names no layer; use adapter: none, or all-linear")
        return self
