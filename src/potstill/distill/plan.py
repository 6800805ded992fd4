"""What distillation depends on besides its config, and what it will cost.

In: a DistillConfig, the figures of ingestion and curation. Out: facts, figures. Light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import check_installed
from potstill.core.machine import available_memory_bytes
from potstill.core.stage import Facts, Figures
from potstill.distill import loading
from potstill.distill.alignment import different_vocabularies
from potstill.distill.config import DistillConfig
from potstill.distill.divergence_plugins import divergence_facts
from potstill.distill.launch import held_by
from potstill.distill.student_config import COMPARED_TOKENS
from potstill.distill.teachers_config import different_teachers
from potstill.distill.training_config import TrainingConfig
from potstill.errors import ModelError, TrainingError
from potstill.models import refs
from potstill.models.shape import Shape, shape_of_config
from potstill.models.size import expected_parameters, folder_config, folder_parameters
from potstill.models.targets import find
from potstill.models.vocabulary import vocabulary_of

INSTRUCTION_TOKENS, QUESTION_TOKENS = 30, 30  # of a row besides its passage
# Weights times computed tokens a second: SmolLM2-135M and a student of 99M, two cores.
TRAINING_RATE = 99e6 * 310
READING_RATE = 135e6 * 1000
GREEDY_RATE = 135e6 * 900
CANDIDATES, ROUNDS = 8, 10  # of the greedy choice: layers tried in a round, rounds, about
FIT_PASSES = 8  # of the teacher over the text that a student is fitted to, about
ANSWER_TOKENS = 20  # of a rollout, about: a student that learns from short answers writes such
WRITING_RATE = 135e6 * 100  # 16 answers at once, one core
STREAMED_SHARE = 0.25  # of the teacher's weights that are in memory at once, at most


def facts(config: DistillConfig, project: Path) -> Facts:
    """The identities of teachers, of a pretrained student, and of rollouts to replay.

    Errors: ModelError, also for a cut that cannot be, where the teacher's configuration lies here
    to tell; InputError; MissingExtraError for what the settings need; TrainingError for tokenizers
    that differ without alignment.
    """
    loading.check(config, cuts=config.student.model is None)
    for field, asked in (
        ("teacher_precision: 4bit", config.teacher_precision == "4bit"),
        ("adapter: qlora", config.adapter == "qlora"),
    ):
        if asked:
            check_installed("bitsandbytes", f"distill.{field}", "quantised")
    check_sharding(config, "distill")
    if config.template:
        from potstill.models.chat import check_template

        check_template(config.template)
    _check_cut(config)
    digests = [refs.digest(refs.parse(one.teacher)) for one in config.voices]
    found = {"teacher": digests[0]}
    found |= {f"teacher {number}": one for number, one in enumerate(digests[1:], 2)}
    for voice in config.voices[1:]:
        _check_vocabularies(config.voices[0].teacher, voice.teacher, different_teachers)
    if config.student.model is not None:
        found["student"] = refs.digest(refs.parse(config.student.model))
        if not config.alignment.used:
            both = config.voices[0].teacher, config.student.model
            _check_vocabularies(*both, lambda *_: different_vocabularies())
    return found | divergence_facts(config.shares) | config.on_policy.facts(project)


def check_sharding(config: TrainingConfig, section: str) -> None:
    """Errors: MissingExtraError if what holds a model in parts is not installed."""
    if config.sharding == "deepspeed":
        check_installed("deepspeed", f"{section}.sharding: deepspeed", "deepspeed")


def _check_cut(config: DistillConfig) -> None:
    settings = config.student
    if settings.model is not None or settings.drop_layers is not None:
        return
    try:
        shape = teacher_shape(config)
    except ModelError:
        if settings.axes in ("width", "both"):
            raise
        return  # layers can be dropped of others too; how many, the stage itself finds out
    if shape is None:
        return
    target = settings.target(shape.parameters, shape.read_parameters)
    if settings.vocabulary is not None:  # words go first, and count towards the size
        shape = replace(shape, vocabulary=min(shape.vocabulary, settings.vocabulary))
    find(shape, target, settings.along(shape.family), settings.round_to)


def teacher_shape(config: DistillConfig) -> Shape | None:
    """Of the teacher that the student is cut from; None if its configuration is not here, or leaves
    its family's defaults out.

    Errors: ModelError for a family whose widths cannot be cut.
    """
    fields = folder_config(config.voices[0].teacher)
    try:
        return None if fields is None else shape_of_config(fields)
    except KeyError:
        return None


def _check_vocabularies(
    teacher: str, other: str, wrong: Callable[[str, str], TrainingError]
) -> None:
    """Errors: TrainingError if both vocabularies are known here and differ.

    Here, so that nobody waits for generation to hear of it; training checks it in any case.
    """
    both = [vocabulary_of(one) for one in (teacher, other)]
    if None not in both and both[0] != both[1]:
        raise wrong(teacher, other)


def row_tokens(earlier: Mapping[str, Figures]) -> float:
    """About how long a row is."""
    return earlier["ingest"]["chunk_tokens"] + INSTRUCTION_TOKENS + QUESTION_TOKENS


def computed_share(config: TrainingConfig, earlier: Mapping[str, Figures]) -> float:
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
    if config.on_policy.used:
        return 0.0
    return stored_bytes(config.signal, config.signal_count, width)


def stored_bytes(kind: str, count: int, width: float) -> float:
    """The same, of a kind of signal. count: words a token; width: features of hidden states."""
    return {
        "live": 0.0,
        "auto": 1.4 * width,
        "hidden_bf16": 1.4 * width,
        "hidden_int8": width,
        "top_k": 2.8 * count,
        "sampled": 1.2 * count,
    }[kind]


def teacher_parameters(config: DistillConfig) -> int:
    """Of the teacher that the student is cut from."""
    return expected_parameters(config.voices[0].teacher)


def student_parameters(config: DistillConfig) -> float:
    """About how many the student has."""
    teacher = teacher_parameters(config)
    if config.student.model is not None:
        return float(expected_parameters(config.student.model))
    return loading.student_parameters(config, teacher)


def assistant_parameters(config: DistillConfig) -> list[float]:
    """About how many each of the assistants has."""
    teacher = teacher_parameters(config)
    return [one.parameters_ratio * teacher for one in config.assistants]


def hidden_width(parameters: float) -> float:
    """Features of the hidden states of a model of that size, about: 576 of SmolLM2-135M."""
    return math.sqrt(parameters / 400)


def budget_tokens(config: DistillConfig, earlier: Mapping[str, Figures]) -> float:
    """Row tokens that a training sees."""
    length = min(row_tokens(earlier), config.sequence_tokens)
    rows = earlier["curate"]["train_rows"] * length
    return min(config.epochs * rows, config.max_tokens or float("inf"))


def memory_need(config: DistillConfig, micro_tokens: int) -> float:
    """Bytes of a training with micro-batches of that size, about."""
    teacher = teacher_parameters(config)
    largest = max([student_parameters(config), *assistant_parameters(config)])
    cuts = config.student.model is None
    if is_streamed(config):
        held = STREAMED_SHARE * loading.number_bytes(config) * teacher
        return loading.LIBRARIES + held + loading.training_bytes(config, largest, micro_tokens)
    sized = config.model_copy(update={"micro_tokens": micro_tokens})
    return loading.LIBRARIES + loading.resident_bytes(sized, teacher, largest, cuts=cuts)


def is_streamed(config: DistillConfig) -> bool:
    """Whether the teacher will be read layer by layer on this machine, as it is now."""
    teacher, student = teacher_parameters(config), student_parameters(config)
    free = available_memory_bytes()
    cuts = config.student.model is None
    return loading.is_streamed(config, teacher, student, free, cuts=cuts)


def estimate(config: DistillConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """One or two trainings of the same length and those of the assistants, the teachers' passes
    over the rows, the choice of layers."""
    teacher, student = teacher_parameters(config), student_parameters(config)
    length = min(row_tokens(earlier), config.sequence_tokens)
    rows = earlier["curate"]["train_rows"] * length
    budget = budget_tokens(config, earlier)
    held_out = min(earlier["curate"]["validation_rows"] * length, config.validation_tokens)
    settings = config.student
    between = (settings.steps - 1) * settings.step_share * budget
    computed = computed_share(config, earlier)
    trainings = 1 + config.baseline
    spent = 20 + seconds((trainings * budget + between) * computed, TRAINING_RATE / student)
    sizes, assisted = assistant_parameters(config), 0.0
    for one, size in zip(config.assistants, sizes, strict=True):
        own = min(
            (one.epochs or config.epochs) * rows,
            one.max_tokens or config.max_tokens or float("inf"),
        )
        assisted += own
        spent += 20 + seconds(own * computed, TRAINING_RATE / size)
        spent += seconds((rows + config.validations * held_out) * computed, READING_RATE / teacher)
    read = rows * len(config.voices) + trainings * config.validations * held_out
    spent += seconds(read * computed, READING_RATE / teacher)
    spent += seconds(cut_tokens(config), GREEDY_RATE / teacher)
    spent += _writing_seconds(config, budget / length, length * computed, student)
    width = hidden_width(teacher)
    # Models in bf16; starts, two checkpoints and the teachers' states go when training is done.
    checkpoint = loading.CHECKPOINT_BYTES[config.adapter]
    disk = (
        (2 + config.baseline) * 2 * student
        + 2 * sum(sizes)
        + (4 + 2 * checkpoint) * max([student, *sizes])
    )
    disk += signal_bytes(config, width) * rows * len(config.voices)
    if is_streamed(config):
        disk += loading.spill_bytes(config, width, max(rows, held_out) * computed)
    return {
        "parameters": student,
        "compared_by_token": 0.0 if config.alignment.used else 1.0,
        "tokens": round(trainings * budget + between + assisted),
        "seconds": spent,
        "memory_bytes": memory_need(config, config.micro_tokens) * held_by(config),
        "disk_bytes": disk,
    }


def cut_tokens(config: DistillConfig) -> float:
    """That the teacher reads so that a student can be cut from it, about; 0 if none is cut."""
    settings = config.student
    if settings.model is not None:
        return 0.0
    greedy = settings.method == "greedy" and settings.axes != "width"
    tried = settings.calibration_tokens * CANDIDATES * ROUNDS * greedy
    shapes = settings.candidates if settings.axes != "depth" else 1
    compared = min(COMPARED_TOKENS, settings.fit_tokens) * shapes * (shapes > 1)
    fitted = FIT_PASSES * (settings.fit_tokens + compared) * settings.refit
    return float(settings.steps * (1 + len(config.assistants)) * (tried + fitted))


def _writing_seconds(
    config: DistillConfig, answers: float, prompt_tokens: float, student: float
) -> float:
    """Of the student's own answers, so many if the share were 1: prompts read, tokens drawn."""
    if not config.on_policy.used or config.on_policy.replay is not None:
        return 0.0
    answers *= config.on_policy.mean_share
    drawn = min(ANSWER_TOKENS, config.on_policy.max_new_tokens)
    reading = seconds(answers * prompt_tokens, READING_RATE / student)
    return reading + seconds(answers * drawn, WRITING_RATE / student)


def counts(data: Path) -> Figures:
    """The student's size."""
    return {"parameters": folder_parameters(data / "models" / "distilled") or 0}
