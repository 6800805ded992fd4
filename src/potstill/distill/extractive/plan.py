"""What distilling spans depends on besides its config, and what it will cost.

In: a SpanDistillConfig, the figures of ingestion and curation. Out: facts, figures. Light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.stage import Facts, Figures
from potstill.distill.extractive.config import SpanDistillConfig
from potstill.errors import ModelError
from potstill.models.encoder import PACKAGE, encoder_digest, encoder_parameters
from potstill.models.refs import digest, parse
from potstill.models.size import expected_parameters, folder_config, folder_parameters

QUESTION_TOKENS = 15
# Weights times tokens a second, two cores: MiniLM-L6 trained; SmolLM2-135M read, both in bf16.
TRAINING_RATE = 22.6e6 * 2000
READING_RATE = 135e6 * 450
BYTES_A_SPAN = 40.0
ACTIVATIONS = 0.027  # bytes a weight, for each token that is computed at once: MiniLM-L6
TOKENS_A_WORD = 1.4


def facts(config: SpanDistillConfig, project: Path) -> Facts:
    """The identities of the student's encoder and of the teacher.

    Errors: ModelError, also for a student or a span model that is none, where its configuration
    lies here to tell.
    """
    _check_kinds(config)
    found = {"student": encoder_digest(config.student.model)}
    if config.signal.source == "language_model":
        found["teacher"] = digest(parse(config.teacher))
    if config.signal.model is not None:
        found["span teacher"] = encoder_digest(config.signal.model)
    return found


def _check_kinds(config: SpanDistillConfig) -> None:
    made = _made_for(config.student.model)
    if made.endswith("ForCausalLM"):
        raise ModelError(
            f"distill.student.model: {config.student.model} writes text ({made}) and cannot mark "
            "answers.",
            "Use an encoder such as BERT, DistilBERT, RoBERTa or ELECTRA.",
        )
    teacher = config.signal.model
    if teacher is None:
        return
    made = _made_for(teacher)
    if made and not made.endswith("ForQuestionAnswering"):
        raise ModelError(
            f"distill.signal.model: {teacher} is no model that marks answers ({made}).",
            "It takes a …ForQuestionAnswering model; a language model is signal.source: "
            "language_model.",
        )


def _made_for(source: str) -> str:
    """The class that a model was saved as; empty if nothing here tells. Errors: ModelError."""
    if source.startswith(PACKAGE):
        return "an encoder without a head"
    named = (folder_config(source) or {}).get("architectures") or [""]
    return str(named[0])


def windows(config: SpanDistillConfig, length: float) -> float:
    """How many windows a passage of so many tokens makes."""
    room = config.window_tokens - QUESTION_TOKENS - 3
    return max(1.0, math.ceil((length - config.window_overlap) / (room - config.window_overlap)))


def estimate(config: SpanDistillConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """The teacher's reading of every row once, and both trainings."""
    student = encoder_parameters(config.student.model)
    length = earlier["ingest"]["chunk_tokens"]
    rows = earlier["curate"]["train_rows"]
    held_out = earlier["curate"]["validation_rows"]
    a_row = windows(config, length) * min(length + QUESTION_TOKENS, config.window_tokens)
    trainings = 1 + (config.taught and config.baseline)
    learned = trainings * config.epochs * rows * a_row
    measured = trainings * (config.validations + 1) * held_out * a_row / 3
    spent = 15 + seconds(learned + measured, TRAINING_RATE / student)
    at_once = min(config.micro_tokens, config.batch_size * min(length, config.window_tokens))
    memory = 6e8 + (20.0 + ACTIVATIONS * at_once) * student
    signal = config.signal
    if signal.source == "language_model":
        teacher = expected_parameters(config.teacher)
        tried = signal.starts * signal.longest_words * TOKENS_A_WORD
        spent += seconds((rows + held_out) * (QUESTION_TOKENS + tried), READING_RATE / teacher)
        memory = max(memory, 1e9 + 4.0 * teacher)
    elif signal.model is not None:
        teacher = encoder_parameters(signal.model)
        spent += seconds((rows + held_out) * a_row / 3, TRAINING_RATE / teacher)
    kept = signal.starts * signal.longest_words if signal.model is None else signal.spans
    return {
        "parameters": student,
        "tokens": round(learned),
        "seconds": spent,
        "memory_bytes": memory,
        # Models in fp32; two checkpoints of each training go when it is done.
        "disk_bytes": (1 + trainings) * 4.0 * student
        + 2 * 12.0 * student
        + config.taught * (rows + held_out) * kept * BYTES_A_SPAN,
    }


def counts(data: Path) -> Figures:
    """The student's size."""
    return {"parameters": folder_parameters(data / "models" / "distilled") or 0}
