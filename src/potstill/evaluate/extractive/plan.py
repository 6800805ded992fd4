"""What evaluating spans depends on besides its config, and what it will cost.

In: a SpanEvaluateConfig, the figures of the earlier stages. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.stage import Facts, Figures
from potstill.evaluate.extractive.config import SpanEvaluateConfig
from potstill.models.refs import digest, parse
from potstill.models.size import expected_parameters

MODELS = 3
# Weights times tokens a second in float32, two cores: encoders; SmolLM2-135M reading, writing.
MARKING_RATE = 22.6e6 * 5000
READING_RATE = 135e6 * 300
WRITING_RATE = 135e6 * 80
DISTRIBUTION_TOKENS = 130
"""That a language model reads to say how probable spans are, about."""


def facts(config: SpanEvaluateConfig, project: Path) -> Facts:
    """The teacher's identity, if it is measured. Errors: ModelError."""
    return {"teacher": digest(parse(config.teacher))} if config.measure_teacher else {}


def estimate(config: SpanEvaluateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Every student reads every row and is timed; the teacher answers every row."""
    student = earlier["distill"]["parameters"]
    rows = min(earlier["curate"]["test_rows"], config.max_examples or float("inf"))
    length = earlier["ingest"]["chunk_tokens"]
    timed = config.speed_rounds * config.speed_questions
    spent = 15 + seconds(MODELS * (rows + timed) * length, MARKING_RATE / student)
    memory = 8e8 + 8.0 * student
    if config.measure_teacher:
        teacher = expected_parameters(config.teacher)
        read = (rows + timed) * (length + DISTRIBUTION_TOKENS)
        spent += seconds(read, READING_RATE / teacher)
        spent += seconds((rows + timed) * config.answer_tokens / 2, WRITING_RATE / teacher)
        memory = max(memory, 8e8 + 8.0 * teacher)
    return {
        "seconds": spent,
        "memory_bytes": memory,
        "disk_bytes": 2000.0 * rows * (MODELS + config.measure_teacher),
    }
