"""What evaluation depends on besides its config, and what it will cost.

In: an EvaluateConfig, the figures of the earlier stages. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.stage import Facts, Figures
from potstill.evaluate.config import EvaluateConfig
from potstill.models.refs import digest, parse
from potstill.models.size import expected_parameters

PROCESS_BYTES = 1.9e9
"""Libraries, a batch's states and keys and values, the teacher's output layer, about."""
NUMBER_BYTES = {"float32": 4.4, "bfloat16": 2.2}  # one model at a time is in memory
MODELS = 4
"""Besides the teacher as it came, where it is corrected."""
# Weights times tokens a second in float32: SmolLM2-135M, two cores.
READING_RATE = 135e6 * 500
WRITING_RATE = 135e6 * 80


def facts(config: EvaluateConfig, project: Path) -> Facts:
    """The teacher's identity. Errors: ModelError."""
    return {"teacher": digest(parse(config.teacher))}


def estimate(config: EvaluateConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Every model reads every test row, answers it, and is timed."""
    teacher = expected_parameters(config.teacher)
    rows = min(earlier["curate"]["test_rows"], config.max_examples or float("inf"))
    models = _models(earlier)
    read, written = passed(config, earlier)
    return {
        "tokens": round(read + written),
        "seconds": 15
        + seconds(read, READING_RATE / teacher)
        + seconds(written, WRITING_RATE / teacher),
        "memory_bytes": evaluation_bytes(config, teacher),
        "disk_bytes": 2000.0 * rows * models,
    }


def evaluation_bytes(config: EvaluateConfig, teacher: float) -> float:
    """Of memory, with a teacher of so many weights."""
    return PROCESS_BYTES + NUMBER_BYTES[config.dtype] * teacher


def passed(config: EvaluateConfig, earlier: Mapping[str, Figures]) -> tuple[float, float]:
    """Tokens that all models together read, and write."""
    rows = min(earlier["curate"]["test_rows"], config.max_examples or float("inf"))
    length = min(earlier["ingest"]["chunk_tokens"], config.max_tokens)
    models = _models(earlier)
    read = models * (rows + config.speed_rounds) * length
    written = models * (rows * config.answer_tokens / 2 + config.speed_rounds * config.speed_tokens)
    # a step of a batch takes as long as some of one row: the weights are read once for all
    batches = sum(1 + requests / 8 for requests in config.speed_parallel)
    written += models * batches * config.speed_tokens
    return read + models * len(config.speed_parallel) * length, written


def _models(earlier: Mapping[str, Figures]) -> int:
    return MODELS + bool(earlier["correct"].get("parameters"))
