"""What the built-in recipes give and need, worked out from the recipes and the models they name.

    from potstill.builtin import describe, recipes

    for one in recipes():
        print(one.name, one.student, one.memory_bytes, one.gpu)
    print(describe("quickstart").commands)

In: a recipe. Out: a `Described`. Nothing is fetched, and nothing is written here twice: figures are
the stages' own estimates for this machine. Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.core.stage import Figures
from potstill.errors import PotstillError
from potstill.ingest.plan import assumed
from potstill.models.packages import PINNED
from potstill.models.size import folder_config
from potstill.needs import PACKAGE, ModelNeed, models_of
from potstill.outlook import this_processor
from potstill.pipeline import steps_of
from potstill.recipe import Recipe, builtin_recipes

DAY = 86_400.0
STUDENT = "distill.student.model"
ENCODERS = frozenset({"bert", "distilbert", "roberta", "albert", "electra", "deberta-v2", "mpnet"})
"""Types of models that read a whole text at once: they mark answers and write none."""


@dataclass(frozen=True)
class Described:
    """A recipe: what it gives, and what it needs. Figures are about, and for this machine."""

    name: str
    source: str
    """As the command line takes it: the name of a built-in recipe, or a path."""
    description: str
    teacher: str
    teacher_parameters: int | None
    student: str
    """A model reference; empty: it is cut from the teacher."""
    student_parameters: int | None
    gives: str
    """The kind of student, and the files that come out."""
    sources: tuple[str, ...]
    """What it is made from, as the recipe names it."""
    assumes: str
    """What the figures are for, where those sources are not there: 1,000 rows. Else empty."""
    models: tuple[ModelNeed, ...]
    memory_bytes: float
    disk_bytes: float
    """Of results; models come on top (`download_bytes`)."""
    seconds: float
    times_are_for: str
    gpu: str
    """Why a graphics processor is wanted; empty: none is."""

    @property
    def download_bytes(self) -> int:
        """Of the models that are not here, as far as it is known."""
        return sum(one.download_bytes or 0 for one in self.models if not one.here)

    @property
    def terms(self) -> tuple[str, ...]:
        """The licences of its models, and where those that must be accepted are."""
        found: dict[str, None] = {}
        for one in self.models:
            licence = one.licence or f"see {one.page}" * bool(one.page)
            if licence:
                found[f"{licence} (accept at {one.page})" if one.gated else licence] = None
        return tuple(found)

    @property
    def commands(self) -> tuple[tuple[str, str], ...]:
        """(what it does, command), in the order in which one would use them."""
        found = [
            ("what it would do and need here", f"potstill plan {self.source}"),
            ("run it, or go on with it", f"potstill run {self.source}"),
        ]
        if self.source in builtin_recipes():
            begin = f"potstill new my-{self.name} --recipe {self.name}"
            found.append(("a project of your own from it", begin))
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        commands = [{"does": does, "command": command} for does, command in self.commands]
        return {
            **asdict(self),
            "download_bytes": self.download_bytes,
            "terms": list(self.terms),
            "commands": commands,
        }


def recipes(project: Path | None = None) -> list[Described]:
    """All built-in recipes, by name. project: where their sources are looked for [here]."""
    return [describe(name, project) for name in builtin_recipes()]


def describe(source: str | Path, project: Path | None = None) -> Described:
    """A recipe, by built-in name or path. Errors: RecipeError, with the nearest name; ModelError
    for a model reference that names nothing."""
    recipe = Recipe.load(source)
    project = (project or Path.cwd()).resolve()
    models = models_of(recipe, ask=False)
    by_reference = {one.reference: one for one in models}
    figures = _estimates(recipe, project)
    student = next((one.reference for one in models if STUDENT in one.fields), "")
    teacher = by_reference.get(recipe.teacher)
    own = by_reference[student].parameters if student in by_reference else None
    spent = sum(one.get("seconds", 0.0) for one in figures.values())
    return Described(
        name=recipe.name,
        source=str(source),
        description=recipe.description,
        teacher=recipe.teacher,
        teacher_parameters=teacher.parameters if teacher else None,
        student=student,
        student_parameters=own or _whole(figures["distill"].get("parameters")),
        gives=_gives(recipe, student or recipe.teacher),
        sources=tuple(recipe.ingest.sources),
        assumes=assumed(recipe.ingest, project),
        models=models,
        memory_bytes=max(one.get("memory_bytes", 0.0) for one in figures.values()),
        disk_bytes=sum(one.get("disk_bytes", 0.0) for one in figures.values()),
        seconds=spent,
        times_are_for=this_processor(),
        gpu=_why_gpu(recipe, spent),
    )


def _estimates(recipe: Recipe, project: Path) -> dict[str, Figures]:
    """Each stage's estimate, as if nothing were finished; none where it cannot be told."""
    figures: dict[str, Figures] = {}
    for step in steps_of(recipe):
        try:
            found = step.stage.estimate(step.config, figures, project)
        except (PotstillError, ArithmeticError, LookupError, OSError, TypeError, ValueError):
            found = {}
        figures[step.stage.name] = found
    return figures


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _gives(recipe: Recipe, student: str) -> str:
    if _is_encoder(student):
        return "a model that marks answers in passages: safetensors, ONNX"
    kinds: tuple[str, ...] = getattr(recipe.export, "kinds", ())
    files = ["safetensors", *(f"GGUF {kind.upper()}" for kind in kinds)]
    return f"a model that chats: {', '.join(files)}"


def _is_encoder(reference: str) -> bool:
    if reference.startswith(PACKAGE):
        package = PINNED.get(reference.removeprefix(PACKAGE).partition("==")[0])
        return package is not None and package.encoder is not None
    config: Mapping[str, Any] = folder_config(reference) or {}
    return config.get("model_type") in ENCODERS


def _why_gpu(recipe: Recipe, seconds: float) -> str:
    values = recipe.distill.model_dump(mode="json")
    four_bits = "4bit" in (values.get("teacher_precision"), values.get("precision"))
    if four_bits or values.get("adapter") == "qlora":
        return "holds weights in 4 bits, which is slow on a processor"
    if seconds > DAY:
        return f"would take about {seconds / DAY:.0f} days on this processor"
    return ""
