"""Evaluate students that mark answers: teacher, undistilled, fine-tuned and distilled.

In: curate's test rows, the chunks they are about, distill's models, the teacher. Out: results.json,
predictions.jsonl, rejected.jsonl, as of other students. Import-light: the work is in `run.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.evaluate.extractive.config import SpanEvaluateConfig
from potstill.evaluate.extractive.plan import estimate, facts

STAGE = Stage(
    name="evaluate",
    version=1,
    config=SpanEvaluateConfig,
    inputs=("curate", "ingest", "correct", "distill"),
    function="potstill.evaluate.extractive.run:run",
    facts=facts,
    estimate=estimate,
)

__all__ = ["STAGE", "SpanEvaluateConfig"]
