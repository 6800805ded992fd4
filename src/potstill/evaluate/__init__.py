"""Evaluate: teacher, undistilled, fine-tuned and distilled student on held-out examples.

In: curate's test rows, the corrected teacher if there is one, distill's models. Out: results.json,
predictions.jsonl, rejected.jsonl. Import-light: the work is in `run.py`, and the report of a whole
run in `report.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.plan import estimate, facts

__all__ = ["STAGE", "EvaluateConfig"]

STAGE = Stage(
    name="evaluate",
    version=3,
    config=EvaluateConfig,
    inputs=("curate", "correct", "distill"),
    function="potstill.evaluate.run:run",
    facts=facts,
    estimate=estimate,
    eases_memory="Set evaluate.dtype: bfloat16, or evaluate.batch_size to half of what it is.",
)
