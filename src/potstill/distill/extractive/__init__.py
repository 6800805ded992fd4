"""Rows whose answers stand in their passages, and a teacher -> a student that marks answers.

In: curated rows, the chunks they are about, the teacher. Out: an encoder with a head for spans,
distilled, and the same trained on the rows alone. Import-light: the work is in `run.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.distill.extractive.config import SpanDistillConfig
from potstill.distill.extractive.plan import counts, estimate, facts

STAGE = Stage(
    name="distill",
    version=1,
    config=SpanDistillConfig,
    inputs=("curate", "ingest", "correct"),
    function="potstill.distill.extractive.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
    eases_memory="Set distill.micro_tokens to half of what it is; the objective stays the same.",
)

__all__ = ["STAGE", "SpanDistillConfig"]
