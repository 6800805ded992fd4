"""What the evaluate stage may be told. Light: pydantic only.

In: the recipe's `evaluate` section. Out: `EvaluateConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from potstill.core.measuring import MeasuringConfig


class Decoding(BaseModel):
    """How answers are chosen. Without change greedy: always the likeliest token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(
        0.0, ge=0, le=10, description="0: greedy. Above: drawn from the distribution at it."
    )
    top_k: int | None = Field(
        None, ge=1, description="Draw from the so many likeliest tokens only; None: from all."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens that reach this probability."
    )
    seed: int = Field(
        0, description="Of the draws. A row's draws depend on it and on the row's id alone."
    )


class HeldOutConfig(MeasuringConfig):
    """What is measured on held-out examples, whatever the student does with them."""

    teacher: str = Field("", description="Model reference of the teacher; filled by the recipe.")
    max_examples: int | None = Field(
        None,
        ge=2,
        description="Evaluate at most this many test rows, in the order of their ids; None: all.",
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


class EvaluateConfig(HeldOutConfig):
    """How the student is compared with its teacher on held-out examples."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"projection_rows"})

    template: str = Field(
        "",
        description="Chat template (Jinja) that rows are put into instead of the models' own; the "
        "student carries it into every file. Filled by the recipe.",
    )
    max_tokens: int = Field(
        2048,
        ge=16,
        le=131_072,
        description="Longest example in tokens, answer included; longer ones are set aside and "
        "counted, never cut.",
    )
    answer_tokens: int = Field(32, ge=1, le=4096, description="Longest generated answer in tokens.")
    decoding: Decoding = Field(Decoding(), description="How answers are chosen.")
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
    speed_tokens: int = Field(
        32, ge=2, le=4096, description="Tokens decoded in each timing, after the first."
    )
    speed_parallel: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (4, 16), description="How many requests at once are timed too, once a model."
    )
