"""The models and settings that a `Distiller` is given: whether they fit, and what identifies them.

In: references or loaded models, settings. Out: nothing or one UsageError; digests. Knows nothing of
rows or training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from potstill.distill import loading
from potstill.distill.config import DistillConfig
from potstill.distill.correct_config import CorrectConfig
from potstill.errors import UsageError
from potstill.models import refs


def check(
    config: DistillConfig,
    correct: CorrectConfig,
    teacher: Any,
    student: Any,
    *,
    tokenizer: Any,
    student_tokenizer: Any,
) -> None:
    """Errors: UsageError for a model that lacks something, or a setting that would do nothing;
    TrainingError for a teacher that cannot be streamed."""
    referenced = isinstance(teacher, str | Path)
    if not referenced:
        _check_loaded_teacher(config, correct, student, tokenizer)
        if student is teacher:
            raise UsageError("Teacher and student are the same object.", "Load the student anew.")
    if correct.method != "none" and referenced:
        taught = [voice.teacher for voice in config.voices]
        if correct.teacher != str(teacher):
            raise UsageError("correct.teacher is the teacher itself.", "Leave it out.")
        if str(teacher) not in taught:
            raise UsageError(
                f"{teacher} is to be corrected, but {', '.join(taught)} teach.",
                "Name it in teachers, or leave correct out.",
            )
    if config.template and tokenizer is not None:
        raise UsageError(
            "A loaded tokenizer carries its own chat template.",
            "Set tokenizer.chat_template, and leave template out.",
        )
    if config.passages:
        raise UsageError(
            "passages are chunks of documents, which rows do not have.",
            "Leave it out, or use a recipe.",
        )
    if config.student.vocabulary is not None:
        raise UsageError(
            "student.vocabulary is a recipe's: a Distiller's teacher and student share a tokenizer "
            "from the beginning.",
            "Cut the teacher's with potstill.models.trimming.trim_vocabulary, and give the folder.",
        )
    loading.check(config, cuts=student is None and config.student.model is None)
    if student is not None and config.assistants:
        raise UsageError(
            "Between a teacher and a student that is given there are no assistants.",
            "Leave the student out, or give how it is cut.",
        )
    if config.student.start == "uncorrected" and correct.method == "none":
        raise UsageError(
            "student.start: uncorrected is for a teacher that is corrected.",
            "Pass correct={…}, or leave start out.",
        )
    loaded = student is not None and not isinstance(student, str | Path)
    if config.alignment.used and loaded and student_tokenizer is None:
        raise UsageError(
            "With alignment, a loaded student needs its own tokenizer.",
            "Pass student_tokenizer=…",
        )


def _check_loaded_teacher(
    config: DistillConfig, correct: CorrectConfig, student: Any, tokenizer: Any
) -> None:
    reference = "Pass the teacher as a path or hub id."
    if tokenizer is None:
        raise UsageError("A loaded teacher needs its tokenizer.", "Pass tokenizer=…")
    if config.teacher_loading == "streamed":
        raise UsageError("A loaded teacher is in memory already, so it is not streamed.", reference)
    if student is None:
        raise UsageError(
            "A student is cut from a teacher that is given by a reference alone.",
            "Pass the teacher as a path or hub id, or pass a student.",
        )
    if config.teachers or config.assistants or correct.method != "none":
        raise UsageError(
            "correct, teachers and assistants are for a teacher that is given by a reference.",
            reference,
        )


def digest_of(model: Any) -> str:
    """What identifies a model: its reference's content, or its weights; of None nothing."""
    if model is None or isinstance(model, str | Path):
        return "" if model is None else refs.digest(refs.parse(model))
    hashed = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()
