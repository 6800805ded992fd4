"""What can be set about distillation. Light: no torch here.

In: the recipe's `distill` section. Out: `DistillConfig`. Knows nothing of how training works.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig

Tokens = Literal["answer", "all"]
DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "total_variation",
]
DIVERGENCE_PARAMETERS: dict[str, float] = {
    "jsd": 0.5,
    "skew_forward_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "adaptive_kl": 0.5,
}
"""The divergences that take a parameter, and what it is if the recipe does not say."""


class StudentConfig(BaseModel):
    """How the student is cut from the teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters_ratio: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Largest share of the teacher's parameters that the student may have; as few "
        "decoder layers are dropped as reach it.",
    )
    drop_layers: int | None = Field(
        None, ge=0, description="Decoder layers to drop; overrides parameters_ratio."
    )
    method: Literal["greedy", "influence"] = Field(
        "greedy",
        description="How the dropped layers are chosen. greedy: again and again the layer whose "
        "removal raises the KL to the teacher least. influence: those that change their input "
        "least, measured once.",
    )
    calibration_tokens: int = Field(
        512,
        ge=64,
        le=65_536,
        description="Tokens of training rows on which layers are measured.",
    )


class LoraConfig(BaseModel):
    """Low-rank adapters, used with `adapter: lora`; merged into the weights before saving."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, le=1024, description="Rank of the two small matrices.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the first matrix.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get an adapter."
    )


class DistillConfig(StageConfig):
    """Rows and teacher -> student.

    The loss of an optimizer step is
    `ce_weight * mean CE + kd_weight * T^2 * mean D(teacher || student; T)`,
    each mean over the term's active tokens of the whole step.
    """

    not_in_key: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes"})

    teacher: str = Field("", description="Model reference of the teacher.")
    student: StudentConfig = Field(
        default_factory=lambda: StudentConfig(), description="How the student is cut."
    )

    kd_weight: float = Field(1.0, ge=0, description="Weight of the divergence to the teacher.")
    kd_tokens: Tokens = Field("all", description="Tokens on which the teacher is imitated.")
    divergence: DivergenceName = Field("forward_kl", description="D in the loss.")
    divergence_parameter: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="beta of jsd (unset: 0.5), alpha of the skew divergences (0.1), the teacher's "
        "head share in adaptive_kl (0.5). The others take none.",
    )
    temperature: float = Field(1.0, gt=0, le=20, description="T: both sides' logits / T.")
    ce_weight: float = Field(0.3, ge=0, description="Weight of the cross-entropy on the rows.")
    ce_tokens: Tokens = Field("answer", description="Tokens that the cross-entropy counts.")

    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training rows.")
    max_tokens: int | None = Field(
        None, gt=0, description="Stop after so many tokens, if the epochs are not over before."
    )
    sequence_tokens: int = Field(
        1024, ge=16, description="Longest row; longer ones are cut, counted and reported."
    )
    step_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens of an optimizer step, about; what rows share counts for each of them.",
    )
    micro_tokens: int = Field(
        4096, ge=16, description="Most tokens, with padding, that are computed at once: memory."
    )
    share_beginnings: bool = Field(
        True,
        description="Compute the tokens that rows have in common at their beginning, such as a "
        "passage with several questions, once: the same gradient of such rows in less time. They "
        "stay in one optimizer step. Has no effect on models with sliding-window attention, and "
        "none with lora.dropout.",
    )
    passages: bool = Field(
        False, description="Also imitate the teacher on the bare text of the training chunks."
    )

    learning_rate: float = Field(5e-4, gt=0, le=1, description="AdamW's highest learning rate.")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine",
        description="After warm-up: cosine to zero, or stable and then a straight decay over the "
        "last fifth (wsd).",
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of steps for the warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    adam_beta2: float = Field(0.98, gt=0, lt=1, description="AdamW's second decay rate.")
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    freeze_embeddings: bool = Field(
        False,
        description="Keep the embeddings and the output layer as the teacher has them.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Of the matrix products; weights stay fp32. auto: bf16 where the hardware has "
        "instructions for it.",
    )
    signal: Literal["auto", "live", "cache"] = Field(
        "auto",
        description="Where the teacher's distribution comes from: its forward pass at every step, "
        "or a file of its last hidden states. auto: the file if rows are seen again and it stays "
        "below 8 GiB.",
    )

    adapter: Literal["none", "lora"] = Field(
        "none", description="Train all weights, or low-rank adapters that are merged at the end."
    )
    lora: LoraConfig = Field(
        default_factory=lambda: LoraConfig(), description="The adapters' settings."
    )

    validations: int = Field(
        6, ge=1, le=1000, description="Times that the held-out loss is measured while training."
    )
    validation_tokens: int = Field(
        8192, ge=64, description="Most tokens of held-out rows that a validation measures."
    )
    patience: int = Field(
        3,
        ge=0,
        description="Stop after so many validations without a better loss; 0 never stops early.",
    )
    checkpoint_minutes: float = Field(
        2.0,
        gt=0,
        description="Longest time between checkpoints; each validation writes one too.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if self.divergence_parameter is not None and self.divergence not in DIVERGENCE_PARAMETERS:
            raise ValueError(f"divergence_parameter: {self.divergence} takes no parameter")
        if self.kd_weight == 0 and self.ce_weight == 0:
            raise ValueError("kd_weight and ce_weight are both 0, so nothing would be learnt")
        if self.micro_tokens < self.sequence_tokens:
            raise ValueError("micro_tokens must not be smaller than sequence_tokens")
        return self
