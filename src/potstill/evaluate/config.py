"""What the evaluate stage may be told. Light: pydantic only.

In: the recipe's `evaluate` section. Out: `EvaluateConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from potstill.core.stage import StageConfig


class EvaluateConfig(StageConfig):
    """How the student is compared with its teacher on held-out examples."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"projection_rows"})

    teacher: str = Field("", description="Model reference of the teacher; filled by the recipe.")
    max_tokens: int = Field(
        2048,
        ge=16,
        le=131_072,
        description="Longest example in tokens, answer included; longer ones are set aside and "
        "counted, never cut.",
    )
    max_examples: int | None = Field(
        None,
        ge=2,
        description="Evaluate at most this many test rows, in the order of their ids; None: all.",
    )
    answer_tokens: int = Field(
        32, ge=1, le=4096, description="Longest generated answer in tokens (greedy decoding)."
    )
    batch_size: int = Field(
        16, ge=1, le=256, description="Answers that are generated at once; costs cache memory."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number format of weights and activations. float32 is exact for bfloat16 "
        "files, and on most CPUs decodes faster; bfloat16 halves the memory and shifts KL by "
        "about a thousandth of a nat. Logits and scores are float32 in both.",
    )
    projection_rows: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Positions whose full-vocabulary logits exist at once; bounds the memory.",
    )
    resamples: int = Field(
        2000, ge=100, le=100_000, description="Bootstrap resamples behind each interval."
    )
    level: float = Field(
        0.95, gt=0.5, lt=1.0, description="Coverage of the intervals, such as 0.95."
    )
    speed_rounds: int = Field(
        3, ge=1, le=100, description="Times each model is timed, in turn; the median counts."
    )
    speed_tokens: int = Field(
        32, ge=2, le=4096, description="Tokens decoded in each timing, after the first."
    )
