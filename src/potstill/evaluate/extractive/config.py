"""What the evaluate stage may be told where `task` is spans. Light: pydantic only.

In: the recipe's `evaluate` section. Out: `SpanEvaluateConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from pydantic import Field

from potstill.core.stage import StageConfig


class SpanEvaluateConfig(StageConfig):
    """How students that mark answers are compared with their teacher on held-out rows."""

    teacher: str = Field("", description="Model reference of the teacher; filled by the recipe.")
    measure_teacher: bool = Field(
        True,
        description="Also let the recipe's language model answer the rows, and measure how near "
        "the students' distributions are to their teacher's. A large teacher takes its time.",
    )
    no_answer_threshold: float | None = Field(
        0.0,
        allow_inf_nan=False,
        description="How many nats likelier than the best span no answer must be to be given; "
        "None: always a span. The exported student keeps it.",
    )
    max_examples: int | None = Field(
        None,
        ge=2,
        description="Evaluate at most this many test rows, in the order of their ids; None: all.",
    )
    answer_tokens: int = Field(
        32, ge=1, le=4096, description="Longest answer that the language model writes, in tokens."
    )
    batch_size: int = Field(
        16, ge=1, le=256, description="Answers that the language model writes at once."
    )
    resamples: int = Field(
        2000, ge=100, le=100_000, description="Bootstrap resamples behind each interval."
    )
    level: float = Field(
        0.95, gt=0.5, lt=1.0, description="Coverage of the intervals, such as 0.95."
    )
    contamination_words: int = Field(
        8,
        ge=2,
        le=64,
        description="Length in words of the pieces of a test row that are looked for in the "
        "training rows (the contamination audit).",
    )
    speed_rounds: int = Field(
        3, ge=1, le=100, description="Times each model is timed, in turn; the median counts."
    )
    speed_questions: int = Field(
        16, ge=1, le=4096, description="Questions of each timing, one after the other."
    )
