"""Deep cuts in several steps of equal ratio, with a short distillation between them.

In: a model's reference, settings with `steps` above 1, rows. Out: the folder of the model to cut
last, which has seen the teacher's words after each cut, and what was measured. Each step lies in a
folder of its own in `work`, with the model that it started its training from, its checkpoints and
its result, so that a kill costs no more than in any training.

After Minitron (arXiv:2407.14679, section 4.2): several cuts with training between them lose less
than one deep cut, as importance is measured anew on what the training made of the model.
"""

from __future__ import annotations

import gc
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from potstill.core.files import read_json, write_json
from potstill.distill import cut
from potstill.distill.config import DistillConfig
from potstill.distill.lessons import Lessons
from potstill.distill.material import prepare
from potstill.distill.objective import AttentionConfig, HiddenConfig
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.panel import Panel
from potstill.distill.ranks import Ranks, is_finished
from potstill.distill.signals import LiveTeacher
from potstill.distill.train import train_student
from potstill.models import surgery
from potstill.models.load import Source, load_model
from potstill.models.save import save_model
from potstill.models.targets import Target


def run(
    config: DistillConfig,
    begins: str,
    teacher: LiveTeacher,
    lessons: Lessons,
    *,
    panel: Panel | None,
    digest: str,
    work: Path,
    tensorboard: Path,
) -> tuple[Path, list[dict[str, Any]]]:
    """All cuts but the last, each followed by a distillation.

    begins: what the first cut is made of. Returns the folder of the model to make the last cut of,
    and one report a step.
    Errors: those of `cut.cut`, `prepare` and `train_student`.
    """
    settings, reports = config.student, []
    final = cut.target_of(settings, teacher.model)
    start = surgery.parameters_of(teacher.model)
    start -= surgery.unread_parameters(teacher.model) if final.reading else 0
    between = shortened(config)
    ranks = Ranks.here()
    for number in range(1, settings.steps):
        folder = work / f"cut-{number}"
        mark = folder / "report.json"
        if ranks.first(partial(is_finished, mark, folder / "model")):
            reports.append(read_json(mark))
            continue
        limit = start * (final.limit / start) ** (number / settings.steps)
        said = f"step {number} of {settings.steps} to {final.said}"
        target = Target(limit, said, final.reading)
        source = work / f"cut-{number - 1}" / "model" if number > 1 else begins
        report = ranks.first(partial(_cut, config, source, teacher, lessons, target, folder))
        student = load_model(folder / "start")
        material = prepare(
            between,
            teacher,
            student.to(teacher.device),
            lessons,
            panel=panel,
            digest=digest,
            work=work,
        )
        student, trained = train_student(
            student,
            material,
            between.objective,
            config=between,
            seed=lessons.seed,
            name=f"step {number}",
            last_step=len(material.plan),
            patience=0,
            work=folder / "training",
            tensorboard=tensorboard / f"step-{number}",
            events=lessons.events,
        )
        report["training"] = {
            "steps": trained.steps,
            "tokens": trained.tokens,
            "validation": trained.history["validation"],
        }
        ranks.wait()
        if ranks.leads:
            write_json(mark, report)
            save_model(student, lessons.tokenizer, folder / "model")
            for name in ("training", "start"):
                shutil.rmtree(folder / name, ignore_errors=True)
        ranks.wait()
        reports.append(report)
        del student, material
        gc.collect()
    return work / f"cut-{settings.steps - 1}" / "model", reports


def shortened(config: DistillConfig) -> DistillConfig:
    """The settings of a training between two cuts: fewer tokens, divergence and cross-entropy on
    the rows alone. Pairs of layers are those of the last student, and its answers are its own."""
    share = config.student.step_share
    return config.model_copy(
        update={
            "epochs": config.epochs * share,
            "max_tokens": config.max_tokens and max(1, round(config.max_tokens * share)),
            "hidden": HiddenConfig(),
            "attention": AttentionConfig(),
            "on_policy": OnPolicyConfig(),
            "signal": "live" if config.on_policy.used else config.signal,
            "validations": 1,
        }
    )


def _cut(
    config: DistillConfig,
    source: Source,
    teacher: LiveTeacher,
    lessons: Lessons,
    target: Target,
    folder: Path,
) -> dict[str, Any]:
    """Make the step's student, in `folder/start`, unless it lies there."""
    done = folder / "cut.json"
    if not (done.exists() and (folder / "start").is_dir()):
        folder.mkdir(exist_ok=True)
        text = cut.text_of(lessons.rows, lessons.validation, config.student, teacher.device)
        whole = loaded(source, teacher)
        made = cut.cut(config.student, whole, target, text, lessons.events)
        write_json(done, made.report | {"parameters": surgery.parameters_of(made.student)})
        save_model(made.student, lessons.tokenizer, folder / "start")
    report: dict[str, Any] = read_json(done)
    return report


def loaded(source: Source, teacher: LiveTeacher) -> Any:
    """A model to be cut: in float32, beside the teacher."""
    return load_model(source).requires_grad_(False).to(teacher.device)
