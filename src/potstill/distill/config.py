"""What can be set about distillation. Light: no torch here.

In: the recipe's `distill` section. Out: `DistillConfig`, and what it shares with every other
training (`correct_config.py`). Knows nothing of how training works.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig
from potstill.distill.chain_config import AssistantConfig
from potstill.distill.objective import Objective
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.schedules import ever
from potstill.distill.teachers_config import TeacherConfig
from potstill.models.adapter_config import AdapterKind, LoraConfig, Precision


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
    start: Literal["teacher", "uncorrected"] = Field(
        "teacher",
        description="Whose weights the student begins with: those of the teacher that teaches it, "
        "or those that this teacher had before its correction.",
    )
    calibration_tokens: int = Field(
        512,
        ge=64,
        le=65_536,
        description="Tokens of training rows on which layers are measured.",
    )


class TrainingConfig(StageConfig):
    """How rows become steps and steps change weights, whatever the loss is."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes", "trackers"})

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

    lora: LoraConfig = Field(
        default_factory=lambda: LoraConfig(), description="The low-rank adapters' settings."
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

    @model_validator(mode="after")
    def _rows_fit(self) -> TrainingConfig:
        if self.micro_tokens < self.sequence_tokens:
            raise ValueError("micro_tokens must not be smaller than sequence_tokens")
        return self


class DistillConfig(TrainingConfig, Objective):
    """Rows and teacher -> student. The fields of the loss are those of `Objective`."""

    teacher: str = Field("", description="Model reference of the teacher.")
    teacher_precision: Precision = Field(
        "full",
        description="Of the teacher's linear layers, but its output layer. 8bit: int8 by rows. "
        "4bit: NF4 with double quantisation, by bitsandbytes. Less memory, more time; what the "
        "teacher says changes, and the event teacher_kl says by how much.",
    )
    teachers: tuple[TeacherConfig, ...] = Field(
        (),
        description="Several teachers of one vocabulary, instead of the one above. The student is "
        "cut from the first, whose template all rows go through.",
    )
    teacher_weighting: Literal["fixed", "confidence"] = Field(
        "fixed",
        description="The share of each of several teachers in a token. fixed: its weight. "
        "confidence: its weight times the probability of its likeliest word there. Shares are "
        "divided by their sum.",
    )
    student: StudentConfig = Field(
        default_factory=lambda: StudentConfig(), description="How the student is cut."
    )
    assistants: tuple[AssistantConfig, ...] = Field(
        (),
        description="Models between teacher and student, from large to small: each is cut from the "
        "one before, distilled, and teaches the next.",
    )

    passages: bool = Field(
        False, description="Also imitate the teacher on the bare text of the training chunks."
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

    adapter: AdapterKind = Field(
        "none",
        description="Train all weights, or low-rank adapters that are merged at the end. lora: "
        "two small matrices a layer. dora: also each row's length. qlora: lora on weights in 4 "
        "bits (NF4), for less memory; merged into the dequantised weights.",
    )
    keep_adapter: bool = Field(
        False,
        description="Keep the distilled student's adapter beside the merged student, in PEFT's "
        "format, with the digest of the base it belongs to.",
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

    @property
    def voices(self) -> tuple[TeacherConfig, ...]:
        """All teachers, each with its reference; one if `teachers` names none."""
        given = self.teachers or (TeacherConfig(),)
        return tuple(
            one.model_copy(update={"teacher": one.teacher or self.teacher}) for one in given
        )

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if self.needs_live_teacher and self.signal not in ("auto", "live"):
            raise ValueError(
                f"signal: {self.signal} holds no layers of the teacher, which hidden and attention "
                "need; use live"
            )
        if self.teacher_loading == "streamed" and (
            self.needs_live_teacher or self.signal == "live" or self.on_policy.used
        ):
            raise ValueError(
                "teacher_loading: streamed computes the teacher's signals before the training; "
                "signal: live, on_policy, hidden and attention need it at every step; use resident"
            )
        if self.teacher_loading == "streamed" and self.teacher_precision != "full":
            raise ValueError(
                f"teacher_precision: {self.teacher_precision} keeps the teacher in memory in fewer "
                "bits, and teacher_loading: streamed reads it in full; choose one"
            )
        if self.signal == "sampled" and set(self.shares) != {"forward_kl"}:
            raise ValueError(
                "signal: sampled is unbiased for divergence: forward_kl alone; use another signal"
            )
        if self.needs_live_teacher and len(self.teachers) > 1:
            raise ValueError(
                "hidden and attention compare the layers of one teacher; teachers names several"
            )
        if self.teacher_weighting == "confidence" and len(self.teachers) < 2:
            raise ValueError("teacher_weighting: confidence is for several teachers")
        if self.teacher_weighting == "confidence" and self.signal == "sampled":
            raise ValueError(
                "teacher_weighting: confidence needs the likeliest word, which signal: sampled "
                "does not hold"
            )
        sizes = [one.parameters_ratio for one in self.assistants]
        if self.assistants and self.student.drop_layers is not None:
            raise ValueError("with assistants, give student.parameters_ratio, not drop_layers")
        if self.assistants and self.student.start != "teacher":
            raise ValueError("student.start: uncorrected does not go together with assistants")
        if any(a <= b for a, b in pairwise([*sizes, self.student.parameters_ratio])):
            raise ValueError(
                "assistants must become smaller, and the student smaller than the last: "
                "parameters_ratio is a share of the teacher"
            )
        if len(self.teachers) > 1 and self.on_policy.used:
            raise ValueError("on_policy is for one teacher; teachers names several")
        if len(self.teachers) > 1 and self.teacher_loading == "streamed":
            raise ValueError("teacher_loading: streamed is for one teacher; teachers names several")
        if len(self.teachers) > 1 and self.teacher_precision != "full":
            raise ValueError("teacher_precision is for one teacher; teachers names several")
        if self.on_policy.used:
            self._rollouts_fit()
        if self.keep_adapter and self.adapter == "none":
            raise ValueError("keep_adapter needs an adapter: lora, dora or qlora")
        if self.adapter == "qlora" and self.lora.init == "orthogonal":
            raise ValueError("lora.init: orthogonal does not go together with adapter: qlora")
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
