"""Whether the teacher is held in memory or read layer by layer, and what each takes. Light.

In: a DistillConfig, numbers of parameters, the memory that is free. Out: bytes, a decision. Knows
nothing of how either is done; no torch here.
"""

from __future__ import annotations

import math

from potstill.core.machine import processor_flags
from potstill.distill.config import DistillConfig
from potstill.distill.residence import why_resident
from potstill.distill.training_config import TrainingConfig
from potstill.errors import TrainingError
from potstill.models.size import expected_parameters, folder_config, without_layers

# float32: weight, gradient, AdamW's two moments; embeddings are in full below QLoRA too.
BYTES_A_WEIGHT = {"none": 16, "lora": 5, "dora": 5, "qlora": 2}
# In a checkpoint: what is trained, and its two moments; adapters are a few hundredths of weights.
CHECKPOINT_BYTES = {"none": 12.0, "lora": 0.5, "dora": 0.5, "qlora": 0.5}
BYTES_A_TOKEN = 1.6e6  # activations of a micro-batch's token, at 99M weights
CHECKPOINTED = 0.45  # of them: 0.48 of 1.03 MB a token, SmolLM2-135M, 2,048 tokens
KEPT_BYTES = 4.6e4  # keys and values of a token while answers are generated, at 99M weights
TEACHER_BYTES = {"full": 4, "8bit": 2, "4bit": 1.5}  # of a weight, with embeddings in full
LAYER_SHARE = 0.026  # of a small model's weights; larger ones have more layers
PASS_TOKENS = 4096  # of a forward pass for a file of signals (recording.py)
LIBRARIES = 1.2e9  # of the process besides models and batches
GROUP_BYTES = 16 << 30
"""Of the states that lie on disk at once. Larger groups read the weights less often."""


def is_streamed(
    config: DistillConfig, teacher: float, student: float, available: int | None, *, cuts: bool
) -> bool:
    """Whether the teacher is read layer by layer.

    teacher, student: parameters. available: bytes; None: not known, which counts as enough.
    cuts: whether the student is cut from the teacher by this very training.
    """
    if config.teacher_loading != "auto":
        return config.teacher_loading == "streamed"
    return (
        available is not None
        and resident_bytes(config, teacher, student, cuts=cuts) > available
        and why_resident(config, cuts=cuts) is None
    )


def check(config: DistillConfig, *, cuts: bool) -> None:
    """Errors: TrainingError if `streamed` is set and something needs the whole teacher."""
    reason = why_resident(config, cuts=cuts)
    if config.teacher_loading == "streamed" and reason is not None:
        what, way_out = reason
        raise TrainingError(f"{what}; distill.teacher_loading: streamed does not.", way_out)


def student_parameters(config: DistillConfig, teacher: float) -> float:
    """Of a student of a teacher of so many parameters, about."""
    settings = config.student
    if settings.model is not None:
        return expected_parameters(settings.model)
    if settings.drop_layers is not None:
        known = without_layers(folder_config(config.voices[0].teacher) or {}, settings.drop_layers)
        return known or teacher * max(0.1, 1 - LAYER_SHARE * settings.drop_layers)
    return min(teacher, settings.target(round(teacher), round(teacher)).limit)


def resident_bytes(config: DistillConfig, teacher: float, student: float, *, cuts: bool) -> float:
    """The teacher, and beside it the student's training, or a copy that it is cut from before.

    Of several teachers, reckoned alike, all are there if they are asked at every step, else the
    first and one other.
    """
    held = TEACHER_BYTES[config.teacher_precision] * teacher
    if config.teacher_precision == "full":
        held = number_bytes(config) * teacher
    live = config.signal == "live" or config.on_policy.used
    held *= len(config.voices) if live else min(2, len(config.voices))
    training = training_bytes(config, student, config.micro_tokens)
    return held + max(training, cut_bytes(teacher, student) if cuts else 0.0)


def cut_bytes(teacher: float, student: float) -> float:
    """The teacher in fp32 and what is cut from it."""
    return 4.0 * (teacher + student)


def training_bytes(config: DistillConfig, student: float, micro_tokens: int) -> float:
    """Weights, gradients and moments, and the activations of a micro-batch; or what generating
    the student's own answers between steps takes, if that is more."""
    activations = activation_bytes(config, student, micro_tokens)
    if config.on_policy.used:
        kept = KEPT_BYTES * math.sqrt(student / 99e6) * config.on_policy.batch_tokens
        activations = max(activations, kept)
    return BYTES_A_WEIGHT[config.adapter] * student + activations


def activation_bytes(config: TrainingConfig, parameters: float, micro_tokens: int) -> float:
    """What the backward pass of a micro-batch needs of its forward pass."""
    kept = CHECKPOINTED if config.gradient_checkpointing else 1.0
    return kept * BYTES_A_TOKEN * math.sqrt(parameters / 99e6) * micro_tokens


def number_bytes(config: DistillConfig) -> int:
    """Of a number of the teacher, in the type of the products (`material.pick_dtype`)."""
    fast = config.precision == "auto" and "avx512_bf16" in processor_flags()
    return 2 if config.precision == "bf16" or fast else 4


def spill_bytes(config: DistillConfig, width: float, tokens: float) -> float:
    """States between two layers, of the layer and the one before it."""
    return min(GROUP_BYTES, 2 * number_bytes(config) * width * max(tokens, PASS_TOKENS))
