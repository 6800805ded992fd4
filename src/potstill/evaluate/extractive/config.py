"""What the evaluate stage may be told where `task` is spans. Light: pydantic only.

In: the recipe's `evaluate` section. Out: `SpanEvaluateConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from pydantic import Field

from potstill.evaluate.config import HeldOutConfig


class SpanEvaluateConfig(HeldOutConfig):
    """How students that mark answers are compared with their teacher on held-out rows."""

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
    answer_tokens: int = Field(
        32, ge=1, le=4096, description="Longest answer that the language model writes, in tokens."
    )
    batch_size: int = Field(
        16, ge=1, le=256, description="Answers that the language model writes at once."
    )
    speed_questions: int = Field(
        16, ge=1, le=4096, description="Questions of each timing, one after the other."
    )
