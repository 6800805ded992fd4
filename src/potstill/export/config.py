"""What the export stage may be told. Light: pydantic only.

In: the recipe's `export` section. Out: `ExportConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from potstill.core.measuring import MeasuringConfig

Quantisation = Literal["q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "bf16", "f32"]


class ExportConfig(MeasuringConfig):
    """Which files are made of the student, and how far they may differ from it."""

    teacher: str = Field("", description="Model reference of the teacher; filled by the recipe.")
    quantisations: tuple[Quantisation, ...] = Field(
        ("q4_k_m",),
        description="GGUF files to make beside the F16 one, which is always made. f32 and bf16 are "
        "written from the student's own weights, the others are quantised from balanced ones.",
    )
    candidates: tuple[Quantisation, ...] = Field(
        (),
        description="More GGUF files to make. One that loses more than it may is left out with its "
        "reason, where one of `quantisations` fails the run.",
    )
    balance: bool = Field(
        True,
        description="Before quantising, scale columns of the weights by powers of two, which the "
        "layers before them undo: inputs that are often large are rounded less. The F16 file is "
        "not touched, and quantised files say what it says more closely. Llama, Mistral, Qwen, "
        "Gemma and Phi-3 architectures; others are quantised as they are.",
    )
    balance_tokens: int = Field(
        4096,
        ge=1,
        description="Tokens of training rows that are read to see which inputs are large.",
    )
    max_examples: int = Field(
        32,
        ge=2,
        description="Measure each file on at most this many test rows, in the order of their ids; "
        "the same rows for every file.",
    )
    max_tokens: int = Field(
        2048,
        ge=16,
        le=131_072,
        description="Longest test row in tokens; longer ones are set aside and counted.",
    )
    answer_tokens: int = Field(
        48, ge=1, le=4096, description="Longest generated answer in tokens (greedy decoding)."
    )
    f16_max_kl: float = Field(
        1e-3,
        gt=0,
        description="The run fails if the F16 file's mean KL to the PyTorch student is above this, "
        "in nats a token.",
    )
    f16_min_agreement: float = Field(
        0.99,
        ge=0,
        le=1,
        description="The run fails if the F16 file ranks another token first than the PyTorch "
        "student at more than the rest of the positions.",
    )
    quantised_max_kl: float = Field(
        0.5, gt=0, description="The same bound for the quantised files, which lose more."
    )
    quantised_min_agreement: float = Field(
        0.75, ge=0, le=1, description="The same bound for the quantised files."
    )
    f16_max_f1_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        description="The run fails if the F16 file's answers have an F1 lower than the PyTorch "
        "student's by more than this, with the whole paired interval beyond it.",
    )
    quantised_max_f1_loss: float = Field(
        0.15, ge=0, le=1, description="The same bound for the quantised files."
    )
    merged_max_kl: float = Field(
        0.01,
        gt=0,
        description="The run fails if the saved student's mean KL to its kept adapter on the base "
        "is above this, in nats a token; rounding to bf16 alone makes about a thousandth.",
    )
    student_max_kl: float | None = Field(
        None,
        gt=0,
        description="The run fails, before any file is made, if the distilled student's mean KL "
        "to the teacher is above this, in nats a token; None: what distilling lost is shown only.",
    )
    student_max_f1_loss: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The same if its answers' F1 is lower than the teacher's by more than this, "
        "with the whole paired interval beyond it.",
    )
    speed_rounds: int = Field(
        3, ge=1, le=100, description="Times each file is timed; the median counts."
    )
    speed_tokens: int = Field(
        32, ge=2, le=4096, description="Tokens decoded in each timing, the first included."
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of all GGUF files to make; F16 first, because the others are made of it."""
        return tuple(dict.fromkeys(("f16", *self.quantisations, *self.candidates)))

    @field_validator("quantisations", "candidates", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        """Q4_K_M and q4_k_m are the same; f16 is made anyway; nothing is made twice."""
        if not isinstance(value, list | tuple):
            return value
        names = [name.lower() if isinstance(name, str) else name for name in value]
        return tuple(dict.fromkeys(name for name in names if name != "f16"))
