"""What the export stage may be told where `task` is spans. Light: pydantic only.

In: the recipe's `export` section. Out: `SpanExportConfig`. Knows nothing of how it is done.
"""

from __future__ import annotations

from pydantic import Field

from potstill.core.measuring import MeasuringConfig


class SpanExportConfig(MeasuringConfig):
    """How far the files of a student that marks answers may differ from it."""

    max_examples: int = Field(
        64,
        ge=2,
        description="Measure each file on at most this many test rows, in the order of their ids; "
        "the same rows for every file.",
    )
    fp32_max_kl: float = Field(
        1e-4,
        gt=0,
        description="The run fails if the distributions of start and end in model.onnx are "
        "farther from PyTorch's than this, in nats.",
    )
    fp32_min_agreement: float = Field(
        0.99, ge=0, le=1, description="The least share of rows with the same likeliest span."
    )
    int8_max_kl: float = Field(0.5, gt=0, description="The same bound for model-int8.onnx.")
    int8_min_agreement: float = Field(
        0.8, ge=0, le=1, description="The same bound for model-int8.onnx."
    )
    speed_rounds: int = Field(
        3, ge=1, le=100, description="Times each file is timed; the median counts."
    )
