"""What distillation depends on besides its config, and what it will cost.

In: a DistillConfig, the figures of ingestion and curation. Out: facts, figures. Light.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.stage import Facts, Figures
from potstill.distill.alignment import AlignmentConfig, different_vocabularies
from potstill.distill.config import DistillConfig
from potstill.models import refs
from potstill.models.size import expected_parameters, folder_parameters
from potstill.models.vocabulary import vocabulary_of

INSTRUCTION_TOKENS, QUESTION_TOKENS = 30, 30  # of a row besides its passage
# Weights times computed tokens a second: SmolLM2-135M and a student of 99M, two cores.
TRAINING_RATE = 99e6 * 310
READING_RATE = 135e6 * 1000
GREEDY_RATE = 135e6 * 900
CANDIDATES, ROUNDS = 8, 10  # of the greedy choice: layers tried in a round, rounds, about
BYTES_A_WEIGHT = {"none": 16, "lora": 5}  # float32: weight, gradient, AdamW's two moments
LAYER_SHARE = 0.026  # of a small model's weights; larger ones have more layers
BYTES_A_TOKEN = 1.6e6  # activations of a micro-batch's token, at 99M weights


def facts(config: DistillConfig, project: Path) -> Facts:
    """The teacher's identity, and the student's if it is there already.

    Errors: ModelError; TrainingError for tokenizers that differ without alignment.
    """
    found = {"teacher": refs.digest(refs.parse(config.teacher))}
    if config.student.model is not None:
        found["student"] = refs.digest(refs.parse(config.student.model))
        _check_vocabularies(config.teacher, config.student.model, config.alignment)
    return found


def _check_vocabularies(teacher: str, student: str, alignment: AlignmentConfig) -> None:
    """Errors: TrainingError if both are known, differ, and nothing says how to align them.

    Here, so that nobody waits for generation to hear of it; training checks it in any case.
    """
    if not alignment.used:
        both = [vocabulary_of(one) for one in (teacher, student)]
        if None not in both and both[0] != both[1]:
            raise different_vocabularies()


def row_tokens(earlier: Mapping[str, Figures]) -> float:
    """About how long a row is."""
    return earlier["ingest"]["chunk_tokens"] + INSTRUCTION_TOKENS + QUESTION_TOKENS


def computed_share(config: DistillConfig, earlier: Mapping[str, Figures]) -> float:
    """Which part of the rows' tokens is computed, as their common beginnings are only once."""
    length = row_tokens(earlier)
    # A family of rows stays within these (families.py).
    room = min(config.step_tokens / length, 1 + config.micro_tokens / QUESTION_TOKENS)
    asked = earlier["generate"]["rows"] / max(1.0, earlier["ingest"]["chunks"])
    rows = max(1.0, min(asked, room))
    if not config.share_beginnings or length > config.sequence_tokens:
        return 1.0
    return (length + (rows - 1) * QUESTION_TOKENS) / (rows * length)


def signal_bytes(config: DistillConfig, width: float) -> float:
    """Of a token of the teacher's signals on disk, about, compressed."""
    return {
        "live": 0.0,
        "auto": 1.4 * width,
        "hidden_bf16": 1.4 * width,
        "hidden_int8": width,
        "top_k": 2.8 * config.signal_count,
        "sampled": 1.2 * config.signal_count,
    }[config.signal]


def student_parameters(config: DistillConfig) -> float:
    """About how many the student has."""
    teacher = expected_parameters(config.teacher)
    if config.student.model is not None:
        return expected_parameters(config.student.model)
    if config.student.drop_layers is not None:
        return teacher * max(0.1, 1 - LAYER_SHARE * config.student.drop_layers)
    return teacher * config.student.parameters_ratio


def hidden_width(parameters: float) -> float:
    """Features of the hidden states of a model of that size, about: 576 of SmolLM2-135M."""
    return float((parameters / 400) ** 0.5)


def budget_tokens(config: DistillConfig, earlier: Mapping[str, Figures]) -> float:
    """Row tokens that a training sees."""
    length = min(row_tokens(earlier), config.sequence_tokens)
    rows = earlier["curate"]["train_rows"] * length
    return min(config.epochs * rows, config.max_tokens or float("inf"))


def memory_need(config: DistillConfig, micro_tokens: int) -> float:
    """Bytes of a training with micro-batches of that size, about."""
    teacher, student = expected_parameters(config.teacher), student_parameters(config)
    activations = BYTES_A_TOKEN * (student / 99e6) ** 0.5 * micro_tokens
    return float(8e8 + BYTES_A_WEIGHT[config.adapter] * student + 4 * teacher + activations)


def estimate(config: DistillConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """Two trainings of the same length, the teacher's pass over the rows, the choice of layers."""
    teacher, student = expected_parameters(config.teacher), student_parameters(config)
    length = min(row_tokens(earlier), config.sequence_tokens)
    rows = earlier["curate"]["train_rows"] * length
    budget = budget_tokens(config, earlier)
    held_out = min(earlier["curate"]["validation_rows"] * length, config.validation_tokens)
    tried = config.student.calibration_tokens * CANDIDATES * ROUNDS
    computed = computed_share(config, earlier)
    spent = 20 + seconds(2 * budget * computed, TRAINING_RATE / student)
    spent += seconds((rows + 2 * config.validations * held_out) * computed, READING_RATE / teacher)
    if config.student.method == "greedy" and config.student.model is None:
        spent += seconds(tried, GREEDY_RATE / teacher)
    return {
        "parameters": student,
        "tokens": round(2 * budget),
        "seconds": spent,
        "memory_bytes": memory_need(config, config.micro_tokens),
        # Three models in bf16; two checkpoints and the teacher's states go when training is done.
        "disk_bytes": 3 * 2 * student
        + 2 * 12 * student
        + signal_bytes(config, hidden_width(teacher)) * rows,
    }


def counts(data: Path) -> Figures:
    """The student's size."""
    return {"parameters": folder_parameters(data / "models" / "distilled") or 0}
