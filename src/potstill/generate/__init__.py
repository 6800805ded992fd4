"""Chunks and ready-made rows in, training rows out, written by the teacher: the second stage.

In: ingest's rows.jsonl and chunks.jsonl. Out: examples.jsonl, rejected.jsonl, summary.json.
Light: engines are imported by `run.py` only. `student_turn` is how the student will be asked, for
whoever asks it; `question_in` is the way back.
"""

from __future__ import annotations

from potstill.core.stage import Stage
from potstill.generate.config import GenerateConfig, PromptConfig
from potstill.generate.plan import counts, estimate, facts
from potstill.generate.prompts import question_in, student_turn

__all__ = ["STAGE", "GenerateConfig", "PromptConfig", "question_in", "student_turn"]

STAGE = Stage(
    name="generate",
    version=3,
    config=GenerateConfig,
    inputs=("ingest",),
    function="potstill.generate.run:run",
    facts=facts,
    estimate=estimate,
    counts=counts,
    eases_memory="Let a GGUF file, or a model behind an address (generate.endpoint), write the "
    "rows: name it as generate.teacher.",
)
