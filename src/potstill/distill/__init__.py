"""Rows and teacher -> student: cut the student, train it, train what it is compared with.

Light on purpose: `config.py` and the stage's description. torch comes in with `run.py`.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.stage import PlanFacts, Stage
from potstill.distill.config import DistillConfig, LoraConfig, StudentConfig
from potstill.models import refs

__all__ = ["STAGE", "DistillConfig", "LoraConfig", "StudentConfig"]


def _facts(config: DistillConfig, project: Path) -> PlanFacts:
    return PlanFacts(key_parts={"teacher": refs.digest(refs.parse(config.teacher))})


STAGE = Stage(
    name="distill",
    version=1,
    config=DistillConfig,
    inputs=("curate", "ingest"),
    function="potstill.distill.run:run",
    facts=_facts,
)
