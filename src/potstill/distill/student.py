"""Where every training of a run starts: a student that lies ready in a folder.

In: settings, the teacher, rows. Out: a `Start`, from which the same student can be loaded as often
as it is needed. It is a pretrained model, or it is cut from the teacher, in one step or several
(`stages_of_cut.py`). What was made lies in `work` and is not made again after a kill.
Knows nothing of stages or results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.files import read_json, write_json
from potstill.distill import cut, stages_of_cut
from potstill.distill.config import DistillConfig
from potstill.distill.lessons import Lessons
from potstill.distill.panel import Panel
from potstill.distill.ranks import Ranks, is_finished
from potstill.distill.signals import LiveTeacher
from potstill.models import adapters, surgery
from potstill.models.load import Source, load_model, load_tokenizer, model_folder
from potstill.models.save import save_model
from potstill.models.skeleton import outline


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
    lessons: Lessons,
    *,
    begins: str,
    panel: Panel | None = None,
    digest: str,
    work: Path,
    tensorboard: Path,
) -> Start:
    """The pretrained student, or the one that is cut from `begins`.

    begins: `config.teacher`, or what that was before its correction. teacher, digest: the one that
    teaches, and what identifies it. panel: several teachers. work, tensorboard: of the
    distillations between cuts.
    Errors: ModelError for an architecture or a size that cannot be, or adapters that find no place,
    before anything is measured.
    """
    settings, tokenizer = config.student, lessons.tokenizer
    parameters = {"teacher": surgery.parameters_of(teacher.model)}
    if settings.model is not None:
        parameters["student"] = surgery.parameters_of(outline(settings.model))
        found = {"method": "pretrained", "model": settings.model, "parameters": parameters}
        return Start(
            settings.model, tokenizer_beside(settings.model, config.template) or tokenizer, found
        )
    done, folder = work / "surgery.json", work / "student"
    ranks = Ranks.here()
    if ranks.first(lambda: is_finished(done, folder)):
        return Start(folder, tokenizer, read_json(done))
    if config.adapter != "none":
        adapters.check_targets(teacher.model, config.lora)
    if teacher.streamed and settings.axes == "auto":  # widths are measured on a whole teacher
        settings = settings.model_copy(update={"axes": "depth"})
    cut.check(settings, teacher.model)
    text = cut.text_of(lessons.rows, lessons.validation, settings, teacher.device)
    earlier: list[dict[str, Any]] = []
    source: Source = begins
    if settings.steps > 1 and not teacher.streamed:
        source, earlier = stages_of_cut.run(
            config,
            begins,
            teacher,
            lessons,
            panel=panel,
            digest=digest,
            work=work,
            tensorboard=tensorboard,
        )

    def last_cut() -> cut.Cut:
        if teacher.streamed:
            return cut.cut_streamed(settings, teacher.model, begins, text, lessons.events)
        target = None
        if settings.drop_layers is None:
            target = cut.target_of(settings, teacher.model)
        asked = None if earlier else teacher.model
        whole = stages_of_cut.loaded(source, teacher)
        return cut.cut(settings, whole, target, text, lessons.events, asked=asked)

    def make() -> dict[str, Any]:
        last = last_cut()
        parameters["student"] = surgery.parameters_of(last.student)
        report: dict[str, Any] = last.report | {"parameters": parameters}
        if earlier:
            report["steps"] = earlier
        write_json(done, report)
        save_model(last.student, tokenizer, folder)
        return report

    return Start(folder, tokenizer, ranks.first(make))


def tokenizer_beside(student: str | Path, template: str = "") -> Any:
    """The tokenizer that lies beside a model, or None. template: instead of its own."""
    if not (model_folder(student) / "tokenizer.json").exists():
        return None
    return load_tokenizer(student, template)
