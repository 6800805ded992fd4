"""Where every training of a run starts: a student that lies ready in a folder.

In: settings, the teacher, rows. Out: a `Start`, from which the same student can be loaded as often
as it is needed. It is a pretrained model, or it is cut from the teacher, in one step or several
(`stages_of_cut.py`). What was made lies in `work` and is not made again after a kill.
Knows nothing of stages or results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_json
from potstill.distill import reduce, stages_of_cut
from potstill.distill.batches import Row
from potstill.distill.config import DistillConfig
from potstill.distill.cut import choose_layers, cut_student, target_of
from potstill.distill.panel import Panel
from potstill.distill.signals import LiveTeacher
from potstill.models import surgery
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.save import save_model
from potstill.records import Example


@dataclass(frozen=True)
class Start:
    """The student before any training of its own."""

    source: str | Path
    """What `load` loads: a reference, or a folder in `work`."""
    tokenizer: Any
    """The student's own; the teacher's where the student is cut from it."""
    report: dict[str, Any]
    """What was measured; `parameters` of teacher and student in any case."""

    def load(self) -> Any:
        """The student in float32, its weights ready to be trained."""
        return load_model(self.source)


def make_student(
    config: DistillConfig,
    teacher: LiveTeacher,
    tokenizer: Any,
    rows: Sequence[Row],
    validation: Sequence[Row],
    *,
    examples: Sequence[Example],
    panel: Panel | None = None,
    source: str | Path | None = None,
    digest: str,
    seed: int,
    work: Path,
    tensorboard: Path,
    events: Emitter,
) -> Start:
    """The pretrained student, or the one that is cut from the teacher.

    teacher: on it layers are tried. source: whose weights the student begins with, if not those of
    `config.teacher`. A teacher that is read layer by layer is cut in depth and not fitted.
    The other arguments are those of `material.prepare`, for distillations between cuts.
    Errors: ModelError for an architecture or a size that cannot be, before anything is measured.
    """
    settings = config.student
    parameters = {"teacher": surgery.parameters_of(teacher.model)}
    if settings.model is not None:
        student = load_model(settings.model)
        parameters["student"] = surgery.parameters_of(student)
        found = {"method": "pretrained", "model": settings.model, "parameters": parameters}
        return Start(settings.model, tokenizer_beside(settings.model) or tokenizer, found)
    done, folder = work / "surgery.json", work / "student"
    if done.exists() and folder.is_dir():
        return Start(folder, tokenizer, read_json(done))
    source = source or config.teacher
    if teacher.streamed:
        report = choose_layers(settings, teacher.model, rows, work, events)
        small = cut_student(source, report["dropped"], streamed=True)
        report["parameters"]["student"] = surgery.parameters_of(small)
        save_model(small, tokenizer, folder)
        return Start(folder, tokenizer, report)
    reduce.check(settings, teacher.model)
    whole = load_model(source).requires_grad_(False).to(teacher.device)
    earlier: list[dict[str, Any]] = []
    if settings.steps > 1:
        whole, earlier = stages_of_cut.run(
            config,
            whole,
            teacher,
            tokenizer,
            rows,
            validation,
            examples=examples,
            panel=panel,
            digest=digest,
            seed=seed,
            work=work,
            tensorboard=tensorboard,
            events=events,
        )
    target = None if settings.drop_layers is not None else target_of(settings, teacher.model)
    text = reduce.text_of(rows, validation, settings, whole.device)
    last = reduce.cut(
        settings, whole, target, text, events, asked=None if earlier else teacher.model
    )
    parameters["student"] = surgery.parameters_of(last.student)
    report = last.report | {"parameters": parameters}
    if earlier:
        report["steps"] = earlier
    write_json(done, report)
    save_model(last.student, tokenizer, folder)
    return Start(folder, tokenizer, report)


def tokenizer_beside(student: str | Path) -> Any:
    """The tokenizer that lies beside a model, or None."""
    return load_tokenizer(student) if (model_folder(student) / "tokenizer.json").exists() else None
