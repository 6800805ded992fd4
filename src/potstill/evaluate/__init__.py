"""Evaluate: teacher, undistilled, fine-tuned and distilled student on held-out examples.

In: curate's test rows, distill's models. Out: results.json, predictions.jsonl, rejected.jsonl.
Import-light: the work is in `run.py`, and the report of a whole run in `report.py`.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.stage import PlanFacts, Stage
from potstill.evaluate.config import EvaluateConfig
from potstill.models.refs import digest, parse

__all__ = ["STAGE", "EvaluateConfig"]


def _facts(config: EvaluateConfig, project: Path) -> PlanFacts:
    return PlanFacts(key_parts={"teacher": digest(parse(config.teacher))})


STAGE = Stage(
    name="evaluate",
    version=1,
    config=EvaluateConfig,
    inputs=("curate", "distill"),
    function="potstill.evaluate.run:run",
    facts=_facts,
)
