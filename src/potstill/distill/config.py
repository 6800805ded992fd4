"""What can be set about distillation. Light: no torch here.

In: the recipe's `distill` section. Out: `DistillConfig`. Knows nothing of how training works.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig
from potstill.distill.objective import Objective
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.schedules import ever


class StudentConfig(BaseModel):
    """How the student is cut from the teacher, or where it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        description="Model reference of a student that is there already; then nothing is cut. With "
        "another tokenizer than the teacher's it needs alignment.method.",
    )

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


class DistillConfig(StageConfig, Objective):
    """Rows and teacher -> student. The fields of the loss are those of `Objective`."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes", "trackers"})

    teacher: str = Field("", description="Model reference of the teacher.")
    student: StudentConfig = Field(
        default_factory=lambda: StudentConfig(), description="How the student is cut."
    )

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
        "stay in one optimizer step. Has no effect with lora.dropout.",
    )
    batching: Literal["auto", "packed", "buckets"] = Field(
        "auto",
        description="packed: rows stand one after the other in one sequence without padding, each "
        "seeing itself alone. buckets: rows of like length side by side, padded. auto: packed if "
        "the models were tried and say the same for packed rows as for single ones.",
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
    teacher_loading: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="resident: the whole teacher in memory. streamed: its decoder layers are read "
        "one at a time and computed for all rows, before the training; the same signals, from a "
        "teacher larger than memory. It needs a signal from a file. auto: streamed if teacher and "
        "training do not fit into the memory that is free.",
    )
    signal: Literal["auto", "live", "hidden_bf16", "hidden_int8", "top_k", "sampled"] = Field(
        "auto",
        description="Where the teacher's distribution comes from. live: its forward pass at every "
        "step. The others are files that are written once: its last hidden states in bf16 or int8, "
        "which give the whole distribution; its signal_count likeliest words and the mass of all "
        "others; signal_count words drawn by lot, whose mean is its distribution. auto: "
        "hidden_bf16 if rows are seen again and the file stays below 8 GiB, else live.",
    )
    signal_count: int = Field(
        64, ge=1, le=1024, description="Words a token in top_k and sampled files."
    )

    gradient_checkpointing: bool = Field(
        False,
        description="Keep only each layer's input and compute the rest again in the backward pass: "
        "less memory, more time.",
    )
    compile: bool = Field(
        False,
        description="Compile the student's layers with torch.compile; attention stays as it is. On "
        "a CPU it needs a C++ compiler, and brings little (docs/experiments.md).",
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
    trackers: tuple[Literal["mlflow", "wandb", "trackio"], ...] = Field(
        (),
        description="Where the curves go besides TensorBoard; each must be installed, and takes "
        "its address and keys from its own environment variables.",
    )
    term_gradients: bool = Field(
        True,
        description="At the first step and after each validation, measure each term's gradient "
        "norm on a few rows of the step.",
    )

    on_policy: OnPolicyConfig = Field(
        default_factory=lambda: OnPolicyConfig(),
        description="The student's own answers, judged by the live teacher, instead of the rows'.",
    )

    @property
    def objective(self) -> Objective:
        """The fields of the loss alone."""
        return Objective(**{name: getattr(self, name) for name in Objective.model_fields})

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if self.micro_tokens < self.sequence_tokens:
            raise ValueError("micro_tokens must not be smaller than sequence_tokens")
        if self.needs_live_teacher and self.signal not in ("auto", "live"):
            raise ValueError(
                f"signal: {self.signal} holds no layers of the teacher, which hidden and attention "
                "need; use live"
            )
        if self.teacher_loading == "streamed" and (
            self.needs_live_teacher or self.signal == "live"
        ):
            raise ValueError(
                "teacher_loading: streamed computes the teacher's signals before the training; "
                "signal: live, hidden and attention need it at every step; use resident"
            )
        if self.signal == "sampled" and set(self.shares) != {"forward_kl"}:
            raise ValueError(
                "signal: sampled is unbiased for divergence: forward_kl alone; use another signal"
            )
        if self.alignment.used and self.signal in ("top_k", "sampled"):
            raise ValueError(
                f"signal: {self.signal} keeps words of the teacher's vocabulary, which the student "
                "of another does not have; with alignment use live, hidden_bf16 or hidden_int8"
            )
        if self.alignment.used and self.on_policy.used:
            raise ValueError(
                "on_policy: the teacher judges the student's own answers token by token, which "
                "needs one tokenizer; set alignment.method: none or on_policy.share: 0"
            )
        if self.on_policy.used:
            self._rollouts_fit()
        if self.attention.used and self.gradient_checkpointing:
            raise ValueError("attention.weight does not go together with gradient_checkpointing")
        if self.attention.used and self.batching == "buckets":
            raise ValueError("attention.weight needs batching: packed")
        return self

    def _rollouts_fit(self) -> None:
        """Errors: ValueError for settings that on-policy training cannot keep."""
        if self.signal not in ("auto", "live"):
            raise ValueError(
                f"signal: {self.signal} is a file, which holds nothing about the answers that "
                "on_policy generates; use live"
            )
        if not (ever(self.kd_weight) or self.needs_live_teacher):
            raise ValueError(
                "on_policy.share: nothing counts on the student's own answers while kd_weight is 0"
            )
        if self.on_policy.nothing_else and ever(self.ce_weight) and not self.passages:
            raise ValueError(
                "on_policy.share: 1 leaves no row to the cross-entropy; set ce_weight: 0"
            )
        if self.on_policy.batch_tokens < self.sequence_tokens:
            raise ValueError("on_policy.batch_tokens must not be smaller than sequence_tokens")
