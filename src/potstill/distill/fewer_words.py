"""The teacher with as many words as the student is to have.

In: settings with `student.vocabulary`, a teacher's folder, rows. Out: the same settings over a copy
of the teacher in `work` that has only those tokens, and its tokenizer. The student is cut from the
copy and learns from it, so both share a vocabulary and all else stays as it is; what the teacher
says of the words that are kept is divided by their sum. The size that was asked for is still a
share of the whole teacher's. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.distill.batches import Row, encode_passages, encode_rows
from potstill.distill.config import DistillConfig
from potstill.distill.student_config import StudentConfig
from potstill.errors import ModelError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import parameters_of, unread_parameters
from potstill.models.trimming import Trimmed, trim_vocabulary
from potstill.records import Chunk, Example


@dataclass(frozen=True)
class FewerWords:
    """The settings, the tokenizer of teacher and student, and what was cut."""

    config: DistillConfig
    tokenizer: Any
    trimmed: Trimmed
    parameters: int
    """Of the whole teacher."""

    def told(self, report: dict[str, Any]) -> dict[str, Any]:
        """A student's report, with what was cut before it."""
        sizes = report["parameters"] | {"teacher": self.parameters}
        words = {"kept": len(self.trimmed.kept), "of": self.trimmed.of}
        return report | {"parameters": sizes, "vocabulary": words}


def with_fewer_words(
    config: DistillConfig,
    examples: Sequence[Example],
    passages: Sequence[Chunk],
    work: Path,
    events: Emitter,
) -> FewerWords:
    """Make the copy, unless it lies in `work`.

    examples: training and held-out ones, whose tokens are all kept. Errors: ModelError for a
    vocabulary that cannot be cut.
    """
    tokens = config.student.vocabulary
    assert tokens is not None
    before = load_tokenizer(config.teacher, config.template)
    rows = _rows(config, examples, passages, before)
    folder = work / "teacher"
    trimmed = trim_vocabulary(
        config.teacher, [row.ids for row in rows], tokens, folder, config.template
    )
    if len(trimmed.kept) > tokens:
        events.warning(
            f"The rows need {len(trimmed.kept):,} tokens, so that many are kept and not "
            f"{tokens:,} (distill.student.vocabulary)."
        )
    after = load_tokenizer(folder)
    for old, new in zip(rows, _rows(config, examples, passages, after), strict=True):
        if [trimmed.kept[number] for number in new.ids] != list(old.ids):
            raise ModelError(
                f"With fewer tokens, the teacher's tokenizer cuts row {old.id} into other pieces.",
                "Leave distill.student.vocabulary out.",
            )
    model = load_model(folder, "auto")
    left = parameters_of(model)
    read = left - unread_parameters(model)
    whole = left + trimmed.parameters
    student = _absolute(config.student, whole, read, read + trimmed.read)
    made = config.model_copy(update={"teacher": str(folder), "student": student})
    return FewerWords(made, after, trimmed, whole)


def _rows(
    config: DistillConfig, examples: Sequence[Example], passages: Sequence[Chunk], tokenizer: Any
) -> list[Row]:
    limit = config.sequence_tokens
    return encode_rows(examples, tokenizer, limit) + encode_passages(passages, tokenizer, limit)


def _absolute(settings: StudentConfig, whole: int, read: int, whole_read: int) -> StudentConfig:
    """The size that was asked for, of a teacher with fewer words."""
    if settings.size == "parameters_ratio":
        size: dict[str, Any] = {
            "parameters_ratio": None,
            "parameters": int(whole * settings.ratio),
        }
    elif settings.speed is not None:
        size = {"speed": max(1.0, settings.speed * read / whole_read)}
    else:
        size = {}
    return settings.model_copy(update=size | {"vocabulary": None})
