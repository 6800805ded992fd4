"""The teachers of a training, where there are several: who has a say in which row, their signals.

In: a recipe's teachers, rows, the first teacher in memory. Out: each row's weights, one signal of
all teachers, and what the probe compares it with. Knows nothing of students or steps.

Teachers that are kept as files are in memory one after the other, beside the first; live ones all
at once. Every teacher reads the rows as the first one's template and tokenizer make them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.distill import attention, preflight
from potstill.distill.batches import Row, RowSet
from potstill.distill.config import DistillConfig
from potstill.distill.families import Family
from potstill.distill.mixture import Teachers
from potstill.distill.plain import Told
from potstill.distill.signals import CacheFormat, LiveTeacher, OneTeacher
from potstill.distill.teachers_config import TeacherConfig, different_teachers
from potstill.errors import TrainingError
from potstill.models import refs
from potstill.models.load import load_model, load_tokenizer

NAMED = 5
"""Documents that an error lists."""
Record = Callable[[str, LiveTeacher, str, RowSet, CacheFormat], OneTeacher]
"""(name, teacher, its digest, rows, format) -> the file of its signals."""


def resolved(config: DistillConfig, teacher: str) -> DistillConfig:
    """The config with its teachers spelled out; `teacher` is the first of them.

    teacher: what stands for the config's own teacher, as that was corrected, or the same.
    """
    voices = tuple(
        one.model_copy(update={"teacher": teacher}) if one.teacher == config.teacher else one
        for one in config.voices
    )
    teachers = voices if config.teachers else ()
    return config.model_copy(update={"teacher": voices[0].teacher, "teachers": teachers})


@dataclass(frozen=True)
class Panel:
    """Two or more teachers."""

    voices: Sequence[TeacherConfig]
    sources: Mapping[str, str]
    """Document's id -> its file, where that is known."""
    confidence: float | None
    """See `Teachers`."""

    @classmethod
    def of(
        cls,
        config: DistillConfig,
        tokenizer: Any,
        rows: Sequence[Row],
        validation: Sequence[Row],
        sources: Mapping[str, str],
    ) -> Panel | None:
        """The teachers of a config; None if there is one, which then teaches every row.

        tokenizer: the first teacher's. Errors: TrainingError for a teacher of other words,
        patterns that match no document, or rows that nobody teaches.
        """
        confident = config.teacher_weighting == "confidence"
        panel = cls(config.voices, sources, config.temperature if confident else None)
        panel._check_documents(rows, validation)
        if len(panel.voices) == 1:
            return None
        for voice in panel.voices[1:]:
            if load_tokenizer(voice.teacher).get_vocab() != tokenizer.get_vocab():
                raise different_teachers(panel.voices[0].teacher, voice.teacher)
        return panel

    def weights(self, rows: Sequence[Row]) -> Tensor:
        """[teachers, rows]: each one's say, the sum over teachers being 1. Not of confidence."""
        raw = torch.tensor(
            [[voice.weight * self._teaches(voice, row) for row in rows] for voice in self.voices],
            dtype=torch.float64,
        )
        return (raw / raw.sum(0)).float()

    def kinds(self, rows: Sequence[Row]) -> list[Hashable]:
        """Rows of one kind have the same teachers; only they may be computed in one sequence."""
        return [tuple(self._teaches(voice, row) for voice in self.voices) for row in rows]

    def others(self, first: LiveTeacher) -> Iterator[LiveTeacher]:
        """All but the first, each loaded when it is asked for, in the first one's precision."""
        like = first.output.weight
        for voice in self.voices[1:]:
            yield LiveTeacher(load_model(voice.teacher).to(like.device), like.dtype)

    def check(self, first: LiveTeacher, rows: Sequence[Row], tokenizer: Any, student: Any) -> None:
        """What `preflight` asks of the first teacher, of each other one. Errors: TrainingError."""
        for teacher in self.others(first):
            words = preflight.check_vocabulary(tokenizer, teacher.model, student)
            preflight.check_rows(rows, tokenizer, words, teacher.model, student)

    def signals(
        self,
        first: LiveTeacher,
        training: RowSet,
        held_out: RowSet,
        *,
        form: CacheFormat | None,
        record: Record,
        probed: Sequence[Family],
        vocabulary: int,
    ) -> tuple[Teachers, Teachers, Told]:
        """The signal of the training rows (live if form is None) and that of the held-out ones,
        and what the probe needs of the rows of the families `probed`."""
        weights, unseen = self.weights(training.rows), self.weights(held_out.rows)
        rows = [training.rows[number] for family in probed for number in family]
        signals: list[OneTeacher] = []
        truths: list[OneTeacher] = []
        logits: list[Mapping[Row, Tensor]] = []
        teachers = self._in_turn(first, training.packed)
        for number, (voice, teacher) in enumerate(zip(self.voices, teachers, strict=True)):
            digest = refs.digest(refs.parse(voice.teacher))
            own, others = (
                _heard(data, table[number])
                for data, table in ((training, weights), (held_out, unseen))
            )
            name = f"{number + 1}"
            signals.append(
                teacher if form is None else record(f"{name}-training", teacher, digest, own, form)
            )
            exact = CacheFormat("hidden_bf16")
            truths.append(
                record(f"{name}-validation", teacher, digest, others, exact)
                if others.families
                else signals[-1]  # has no say in them, and is not asked
            )
            alone = zip(rows, teacher.logits(rows), strict=True)
            logits.append({row: said[:-1, :vocabulary].float() for row, said in alone})
        signal, truth = (
            Teachers(some, table, vocabulary=vocabulary, confidence=self.confidence)
            for some, table in ((signals, weights), (truths, unseen))
        )
        says = {row: weights[:, number] for number, row in enumerate(training.rows)}
        told = Told(logits, {row: says[row] for row in rows}, self.confidence is not None)
        return signal, truth, told

    def _in_turn(self, first: LiveTeacher, packed: bool) -> Iterator[LiveTeacher]:
        yield first
        for teacher in self.others(first):
            if packed:
                attention.use(teacher.model)
            yield teacher

    def _teaches(self, voice: TeacherConfig, row: Row) -> bool:
        return voice.teaches(self._source(row)) or voice.teaches(row.document)

    def _source(self, row: Row) -> str:
        return self.sources.get(row.document, row.document)

    def _check_documents(self, rows: Sequence[Row], validation: Sequence[Row]) -> None:
        for number, voice in enumerate(self.voices):
            if not any(self._teaches(voice, row) for row in rows):
                raise TrainingError(
                    f"distill.teachers[{number}].documents ({', '.join(voice.patterns)}) matches "
                    "no document of the training rows.",
                    f"They are of {self._listed(rows)}.",
                )
        left = [
            row
            for row in [*rows, *validation]
            if not any(self._teaches(voice, row) for voice in self.voices)
        ]
        if left:
            raise TrainingError(
                f"{len(left)} rows have no teacher: those of {self._listed(left)}.",
                "Give one of distill.teachers no documents, so that it teaches all, or name "
                "these too.",
            )

    def _listed(self, rows: Sequence[Row]) -> str:
        names = sorted({self._source(row) or "no document" for row in rows})
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more


def _heard(data: RowSet, weights: Tensor) -> RowSet:
    """The rows with those families in which a teacher has a say."""
    families = [family for family in data.families if weights[family[0]] > 0]
    return RowSet(data.rows, families, data.packed)
