"""Rows and teacher -> student: cut the student, train it, train what it is compared with.

Light on purpose: `config.py`, `plan.py` and the stage's description. torch comes in with `run.py`.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.distill.config import DistillConfig, LoraConfig, StudentConfig
from potstill.distill.plan import counts, estimate, facts

__all__ = ["STAGE", "DistillConfig", "LoraConfig", "StudentConfig"]

STAGE = Stage(
    name="distill",
    version=1,
    config=DistillConfig,
    inputs=("curate", "ingest"),
    function="potstill.distill.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
)
