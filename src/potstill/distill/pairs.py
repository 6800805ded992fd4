"""Examples and passages as rows, for a student whose teacher may have another tokenizer.

In: examples, passages, both tokenizers. Out: the student's rows; with alignment, beside each the
teacher's row and their spans, and the rows that cannot be aligned, with the reason. Knows nothing
of models or losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.events import Emitter
from potstill.distill.batches import Row, encode_passages, encode_rows, row_of
from potstill.distill.config import DistillConfig
from potstill.distill.lessons import Lessons
from potstill.distill.preflight import check_tokenizers
from potstill.distill.teacher_rows import TeacherRows
from potstill.models.align import Aligned, Aligner, Span, Words
from potstill.models.chat import ChangedWordsError
from potstill.records import Chunk, Example, Rejected

TOO_FEW, NO_SPAN, CHANGED = "not_aligned", "no_span", "words_changed"
REASONS = {
    TOO_FEW: "less than {least_share:.0%} of their bytes are aligned between the two tokenizers",
    NO_SPAN: "nothing that is predicted in them is aligned between the two tokenizers",
    CHANGED: "a chat template changes their words",
}
"""Why a row is left out, by the reason it is rejected with."""


@dataclass(frozen=True)
class Pairs:
    """Rows of the student, the same rows of the teacher, and those that were rejected."""

    rows: list[Row]
    teacher: TeacherRows
    rejected: list[Rejected]
    share: float
    """Of the bytes of the turns' own words in all kept rows, those that are aligned."""


@dataclass(frozen=True)
class Encoded:
    """Everything that a training reads. `aligned`: training and validation rows as the teacher
    reads them, if it has another tokenizer."""

    rows: list[Row]
    validation: list[Row]
    examples: list[Example]
    """Of the training rows."""
    aligned: tuple[TeacherRows, TeacherRows] | None = None
    rejected: tuple[Rejected, ...] = ()
    share: float = 1.0
    """Of the training rows' bytes, those that are aligned."""
    words: tuple[Words, Words] | None = None
    """The student's and the teacher's, if they are aligned."""

    def lessons(self, tokenizer: Any, seed: int, events: Emitter) -> Lessons:
        """What trainings on these rows share. tokenizer: the teacher's."""
        return Lessons(
            tokenizer,
            self.rows,
            self.validation,
            self.examples,
            seed,
            events,
            self.aligned,
            self.words,
        )

    def report(self, least_share: float, events: Emitter) -> None:
        """Say what was aligned, and which rows are left out."""
        if self.aligned is None:
            return
        events.metric("aligned_share", self.share)
        for one in self.rejected:
            events.emit("rejected", id=one.id, reason=one.reason, detail=one.detail)
        counts = Counter(one.reason for one in self.rejected)
        for reason, why in REASONS.items():
            if counts[reason]:
                said = why.format(least_share=least_share)
                events.warning(f"{counts[reason]} rows are left out: {said}.")


def encode_all(
    config: DistillConfig,
    examples: Sequence[Example],
    passages: Sequence[Chunk],
    unseen: Sequence[Example],
    *,
    student_tokenizer: Any,
    teacher_tokenizer: Any,
) -> Encoded:
    """Encode training rows (examples, then passages) and held-out ones.

    Errors: TrainingError if the tokenizers differ and nothing says how to align them; ModelError
    for one whose tokens cannot be read as bytes; errors of `encode_pairs`.
    """
    limit = config.sequence_tokens
    if not config.alignment.used:
        check_tokenizers(teacher_tokenizer, student_tokenizer)
        rows = encode_rows(examples, student_tokenizer, limit)
        rows += encode_passages(passages, student_tokenizer, limit)
        return Encoded(rows, encode_rows(unseen, student_tokenizer, limit), list(examples))
    aligner = Aligner(student_tokenizer, teacher_tokenizer)
    training, validation = (
        encode_pairs(aligner, *some, limit, config.alignment.least_share)
        for some in ((examples, passages), (unseen, ()))
    )
    gone = {one.id for one in training.rejected}
    return Encoded(
        training.rows,
        validation.rows,
        [example for example in examples if example.id not in gone],
        (training.teacher, validation.teacher),
        (*training.rejected, *validation.rejected),
        training.share,
        aligner.words,
    )


def encode_pairs(
    aligner: Aligner,
    examples: Iterable[Example],
    passages: Iterable[Chunk],
    max_tokens: int,
    least_share: float,
) -> Pairs:
    """Encode examples, and then passages, for both sides, of which the student's is the first.

    max_tokens: of a row, on either side. A row with less than `least_share` of its bytes aligned is
    rejected. Errors: ModelError for a template that refuses a conversation.
    """
    kept: list[tuple[Row, Row, tuple[Span, ...]]] = []
    rejected: list[Rejected] = []
    shares: list[Aligned] = []

    def take(item: Example | Chunk, found: tuple[Row, Row, Aligned]) -> None:
        spans = tuple(span for span in found[2].spans if span.predicted)
        if found[2].share >= least_share and spans:
            kept.append((found[0], found[1], spans))
            shares.append(found[2])
        else:
            detail = f"{found[2].share:.1%} of {found[2].size} bytes aligned"
            rejected.append(_reject(item, NO_SPAN if not spans else TOO_FEW, detail))

    for example in examples:
        try:
            encoded, aligned = aligner.example(example.turns, max_tokens)
        except ChangedWordsError as error:
            rejected.append(_reject(example, CHANGED, str(error)))
            continue
        rows = [row_of(example, one) for one in encoded]
        take(example, (rows[0], rows[1], aligned))
    for chunk in passages:
        found = [
            row
            for tokenizer in aligner.tokenizers
            for row in encode_passages([chunk], tokenizer, max_tokens)
        ]
        if len(found) == 2:  # else it has no two tokens
            aligned = aligner.text([row.ids for row in found], chunk.text)
            take(chunk, (found[0], found[1], aligned))
    return Pairs(
        [student for student, _, _ in kept],
        TeacherRows([teacher for _, teacher, _ in kept], [spans for _, _, spans in kept]),
        rejected,
        sum(one.share * one.size for one in shares) / max(1, sum(one.size for one in shares)),
    )


def _reject(item: Example | Chunk, reason: str, detail: str) -> Rejected:
    row = item.model_dump(mode="json")
    return Rejected(id=item.id, stage="distill", reason=reason, detail=detail, row=row)
