"""A chain teacher -> assistant -> ... -> student: each learns from the one before it.

In: a config with assistants, rows. Out: the assistants' folders, and the config by which the last
of them teaches the student. Knows nothing of stages, or of what the student is compared with.

A student that is far smaller than its teacher learns more from a model between the two. Source:
Mirzadeh et al. 2020, arXiv:1902.03393. Each assistant leaves a mark in `work` when it is done, and
is not trained again after a kill; one that was under way goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import read_json, write_json
from potstill.distill.config import DistillConfig
from potstill.distill.lessons import Lessons
from potstill.distill.material import prepare
from potstill.distill.opening import open_teacher
from potstill.distill.outcome import Trained
from potstill.distill.panel import Panel
from potstill.distill.ranks import Ranks, is_finished
from potstill.distill.student import make_student
from potstill.distill.student_config import StudentConfig
from potstill.distill.train import train_student
from potstill.errors import TrainingError
from potstill.models import importance, refs, surgery, targets
from potstill.models.save import save_model
from potstill.models.skeleton import outline
from potstill.models.targets import Target

SLACK = 1e-9
"""A share of a share is rounded; it must not cost a layer."""


def through_assistants(
    config: DistillConfig,
    panel: Panel | None,
    lessons: Lessons,
    *,
    models: Path,
    work: Path,
    tensorboard: Path,
) -> tuple[DistillConfig, Panel | None, dict[str, Trained]]:
    """Make each assistant that is not there yet; returns the config and teachers by which the
    student learns, and what the assistants' trainings came to. Without assistants: what was given.

    models: the assistants are kept in it, as `assistant-1` and so on, and how they were cut beside
    it. panel: several teachers; they teach the first assistant. Errors: TrainingError for an
    assistant that would be no smaller than the one before it.
    """
    trained: dict[str, Trained] = {}
    if not config.assistants:
        return config, panel, trained
    teacher = outline(config.teacher)
    _check_sizes(config, teacher)
    whole = link = surgery.parameters_of(teacher)
    now = config.model_copy(update={"assistants": ()})
    for number, assistant in enumerate(config.assistants, 1):
        name = f"assistant-{number}"
        own = _cut_to(now, assistant.parameters_ratio * whole / link).model_copy(
            update={
                "epochs": assistant.epochs or config.epochs,
                "max_tokens": assistant.max_tokens or config.max_tokens,
            }
        )
        mark, target = work / f"{name}.json", models / name
        if not Ranks.here().first(partial(is_finished, mark, target)):
            _teach(
                own,
                panel,
                lessons,
                name=name,
                mark=mark,
                target=target,
                work=work / name,
                tensorboard=tensorboard / name,
            )
        done = read_json(mark)
        link = done.pop("parameters")
        trained[name] = Trained(**done)
        panel, now = None, now.model_copy(update={"teacher": str(target), "teachers": ()})
    last = _cut_to(now, config.student.ratio * whole / link)
    # One teacher now, so there is nothing to weigh.
    return last.model_copy(update={"teacher_weighting": "fixed"}), None, trained


def _cut_to(config: DistillConfig, ratio: float) -> DistillConfig:
    """The same, with a student of that share of its own teacher."""
    student = config.student.model_copy(
        update={"parameters_ratio": min(1.0, ratio * (1 + SLACK)), "drop_layers": None}
    )
    return config.model_copy(update={"student": student})


def _check_sizes(config: DistillConfig, teacher: Any) -> None:
    """Before anything is trained: each link must be smaller than the one before it."""
    parameters = surgery.parameters_of(teacher)
    ratios = [one.parameters_ratio for one in config.assistants]
    names = [f"Assistant {number}" for number in range(1, len(ratios) + 1)]
    before = None
    for name, ratio in zip([*names, "The student"], [*ratios, config.student.ratio], strict=True):
        target = Target(parameters * ratio, f"{name} with a parameters_ratio of {ratio:g}")
        if _loses_nothing(config.student, teacher, before, target):
            raise TrainingError(
                f"{target.said} would be as large as the model that teaches it.",
                "Leave an assistant out of distill.assistants, or choose ratios farther apart.",
            )
        before = target


def _loses_nothing(
    settings: StudentConfig, teacher: Any, before: Target | None, target: Target
) -> bool:
    """Whether what is cut to `before` (None: the teacher) meets the next target as it is."""
    axes = settings.along(teacher.config.get_text_config().model_type)
    if axes == "depth":
        dropped = 0 if before is None else surgery.drops_for(teacher, before)
        return surgery.drops_for(teacher, target) <= dropped
    shapes = [importance.shape_of(teacher)]
    if before is not None:
        found = targets.find(shapes[0], before, axes, settings.round_to)
        shapes = found.shapes[: settings.candidates]
    return all(target.met(shape) for shape in shapes)


def _teach(
    config: DistillConfig,
    panel: Panel | None,
    lessons: Lessons,
    *,
    name: str,
    mark: Path,
    target: Path,
    work: Path,
    tensorboard: Path,
) -> None:
    """Cut one assistant from its teacher, distil it, keep it, and drop what was needed for it."""
    work.mkdir(parents=True, exist_ok=True)
    digest = refs.digest(refs.parse(config.teacher))
    teacher = open_teacher(config.teacher, config, lessons.taught, lessons.events)
    start = make_student(
        config,
        teacher,
        lessons,
        begins=config.teacher,
        panel=panel,
        digest=digest,
        work=work,
        tensorboard=tensorboard,
    )
    ranks = Ranks.here()
    if ranks.leads:
        write_json(target.parent.parent / f"surgery-{name}.json", start.report)
    assistant = start.load().to(teacher.device)
    material = prepare(
        config,
        teacher,
        assistant,
        lessons,
        panel=panel,
        digest=digest,
        work=work,
    )
    del teacher
    gc.collect()
    assistant, trained = train_student(
        assistant,
        material,
        config.objective,
        config=config,
        seed=lessons.seed,
        name=name,
        last_step=len(material.plan),
        patience=config.patience,
        work=work / "training",
        tensorboard=tensorboard,
        events=lessons.events,
        rollouts=work / "rollouts.jsonl" if config.on_policy.used else None,
    )
    size = surgery.parameters_of(assistant)
    ranks.wait()
    if ranks.leads:
        write_json(mark, dataclasses.asdict(trained) | {"parameters": size})
        save_model(assistant.to(torch.bfloat16), lessons.tokenizer, target)
        shutil.rmtree(work, ignore_errors=True)  # the mark says that it is needed no more
    ranks.wait()
