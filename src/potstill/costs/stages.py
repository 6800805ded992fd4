"""A recipe's stages on a cluster: how long, how much of everything, and what is waited for.

In: a `Recipe`, the figures of its stages, a cluster. Out: a `ClusterPlan`. Every number comes of
the functions of this package; here stands which of them a stage is. What does not fit is handed to
`fitting.py`.

Taken for granted, and said in the plan: generation with a local teacher has a whole copy on every
device; distillation and correction train on all devices, a process each; evaluation is one process
on one device; ingestion, curation and export compute on the host's processor, as on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from potstill.core.stage import Figures
from potstill.costs import decoder, training
from potstill.costs.binding import USABLE, Phase, Spent, bound, shares
from potstill.costs.cluster import HERE, Cluster
from potstill.costs.fitting import nearest_change
from potstill.costs.serving import larger_device, serving_bytes, writing
from potstill.costs.signals import reading
from potstill.costs.training import OVERHEAD
from potstill.costs.trainings import correction, distillation, spans
from potstill.distill import DistillConfig
from potstill.distill.loading import cut_bytes
from potstill.distill.plan import computed_share, cut_tokens, row_tokens
from potstill.evaluate import EvaluateConfig
from potstill.evaluate.plan import evaluation_bytes, passed
from potstill.generate.plan import asked_of
from potstill.inference.open import resolve_backend
from potstill.models.size import expected_parameters
from potstill.recipe import Recipe


@dataclass(frozen=True)
class StageCost:
    """One stage on the cluster."""

    name: str
    how: str
    """DDP, FSDP, copies (one a device), one device, host (its processor), or endpoint."""
    seconds: float
    binds: str
    """compute, bandwidth, interconnect, storage, requests or processor; empty: nothing to do."""
    by_resource: Mapping[str, float]
    """Seconds of each, if it were alone."""
    memory: float
    """Bytes of a rank; of the host's own memory where the stage runs there."""
    parts: Mapping[str, float]
    """What a training's memory is made of. Before it, and in all: cut, while a student is cut;
    reading, while the teacher writes a file."""
    sent: float
    """Bytes that a rank sends to the others, in all."""
    store: float
    """Bytes that the stage leaves in the store, and that go to a remote one."""
    fits: bool
    """Whether a rank's memory holds it; nothing is said of a host's."""
    changes: tuple[str, ...] = ()
    """The nearest change with which it does; empty if it fits, or if none was found."""


@dataclass(frozen=True)
class ClusterPlan:
    """A recipe on a cluster."""

    cluster: Cluster
    stages: tuple[StageCost, ...]
    shares: Mapping[str, float]
    """Of the documents' peaks that are taken to be reached."""

    @property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return sum(one.seconds for one in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage does."""
        return all(one.fits for one in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        made = asdict(self)
        made["cluster"]["name"] = self.cluster.name
        made["cluster"]["accelerator"]["read"] = self.cluster.accelerator.read.isoformat()
        return {**made, "usable_memory": USABLE, "seconds": self.seconds, "fits": self.fits}


def plan_on(recipe: Recipe, figures: Mapping[str, Figures], cluster: Cluster) -> ClusterPlan:
    """What each stage of the recipe would take there, were it run anew.

    figures: of every stage by name, counted or estimated. Errors: LookupError if some are missing.
    """
    stages = []
    for name in figures:
        if name == "generate":
            stages.append(_generate(recipe, figures, cluster))
        elif name in ("correct", "distill"):
            stages.append(_training(name, recipe, figures, cluster))
        elif name == "evaluate" and isinstance(recipe.evaluate, EvaluateConfig):
            stages.append(_evaluate(recipe, figures, cluster))
        else:
            stages.append(_host(name, figures[name]))
    return ClusterPlan(cluster, tuple(stages), shares(cluster))


def _host(name: str, figures: Figures) -> StageCost:
    """A stage that no accelerator takes over, as this machine was found to do it."""
    seconds = figures.get("seconds", 0.0)
    return _stage(
        name, "host", bound_by("processor", seconds), figures.get("memory_bytes", 0.0), figures
    )


def bound_by(resource: str, seconds: float) -> Spent:
    """Time that is known as such."""
    return Spent(seconds, resource if seconds else "", {resource: seconds})


def _stage(
    name: str,
    how: str,
    spent: Spent,
    memory: float,
    figures: Figures,
    *,
    parts: Mapping[str, float] | None = None,
    sent: float = 0.0,
    fits: bool = True,
    changes: tuple[str, ...] = (),
) -> StageCost:
    store = figures.get("disk_bytes", 0.0)
    return StageCost(
        name,
        how,
        spent.seconds,
        spent.binds,
        spent.by_resource,
        memory,
        parts or {},
        sent,
        store,
        fits,
        changes,
    )


def _generate(recipe: Recipe, figures: Mapping[str, Figures], cluster: Cluster) -> StageCost:
    """Prompts read and replies written by each teacher, batches of `parallel` a device."""
    config = recipe.generate
    _, teachers = asked_of(config, figures["ingest"])
    phases, memory, how = [], 0.0, "host"
    for asked in teachers:
        backend = resolve_backend(asked.teacher, asked.backend)
        if not asked.requests or backend == "fake":
            continue
        if asked.endpoint is not None:
            took = asked.endpoint.quote(asked.requests, asked.prompt, asked.reply)["seconds"]
            phases.append(Phase("asking", requests_seconds=took))
            how = "endpoint" if how == "host" else how
            continue
        # Here rates are fitted, and closer than a roofline; llama.cpp's package has no CUDA.
        if cluster.accelerator.name == HERE or backend == "llamacpp":
            return _host("generate", figures["generate"])
        how = "copies"
        model = decoder.of_reference(asked.teacher)
        phases += writing(
            model, asked.prompt, asked.reply, config.parallel, config.context_tokens, cluster
        )
        held = serving_bytes(model, config.parallel, config.context_tokens, cluster)
        memory = max(memory, held)
    fitting = training.fits(memory, cluster)
    changes = () if fitting else larger_device(memory, "generate.teacher behind an address")
    return _stage(
        "generate", how, bound(phases, cluster), memory, figures["generate"],
        fits=fitting, changes=changes,
    )  # fmt: skip


def _evaluate(recipe: Recipe, figures: Mapping[str, Figures], cluster: Cluster) -> StageCost:
    if cluster.accelerator.name == HERE:
        return _host("evaluate", figures["evaluate"])
    config = recipe.evaluate
    read, written = passed(config, figures)
    model = decoder.of_reference(config.teacher)  # the others are smaller: an upper bound
    one = Cluster(cluster.accelerator)
    phases = writing(model, read, written, 8, config.max_tokens, one)
    memory = evaluation_bytes(config, expected_parameters(config.teacher))
    fitting = training.fits(memory, cluster)
    changes = () if fitting else _smaller_evaluation(config, cluster)
    return _stage(
        "evaluate", "one device", bound(phases, cluster), memory, figures["evaluate"],
        fits=fitting, changes=changes,
    )  # fmt: skip


def _smaller_evaluation(config: EvaluateConfig, cluster: Cluster) -> tuple[str, ...]:
    """Half the bytes, a larger device, or both."""
    teacher = expected_parameters(config.teacher)
    half = config.model_copy(update={"dtype": "bfloat16"})
    needed, halved = evaluation_bytes(config, teacher), evaluation_bytes(half, teacher)
    if config.dtype == "bfloat16":
        return larger_device(needed)
    setting = "evaluate.dtype=bfloat16"
    if training.fits(halved, cluster):
        return (setting,)
    larger = larger_device(halved)
    return larger_device(needed) or ((setting, *larger) if larger else ())


def _training(
    name: str, recipe: Recipe, figures: Mapping[str, Figures], cluster: Cluster
) -> StageCost:
    distill: Any = recipe.distill  # of a recipe of spans another class
    if name == "correct":
        if recipe.correct.method == "none":
            return _stage("correct", "host", bound((), cluster), 0.0, {})
        case = correction(recipe.correct, figures)
        phases = []
    elif isinstance(distill, DistillConfig):
        case = distillation(distill, figures, cluster)
        phases = _before(distill, case.one.teacher, figures, case.one.signal_bytes, cluster)
    else:
        case, phases = spans(distill, figures), []
    section = recipe.correct if name == "correct" else distill
    way = _way(section) if cluster.ranks > 1 else "one device"
    sharded = way in ("FSDP", "ZeRO-3")
    memory = training.memory_of(case.one, cluster, sharded=sharded)
    needed = OVERHEAD + sum(memory.values())
    fitting = training.fits(needed, cluster)
    changes: tuple[str, ...] = ()
    if not fitting:
        changes = nearest_change(case.one, cluster, OVERHEAD, name, sharded=sharded)
    cut = _cut(distill, case.one) if name == "distill" else 0.0
    if cut and not training.fits(cut, cluster):
        changes = (*changes, *larger_device(cut, f"'{name}.student={{model: A_PRETRAINED_ONE}}'"))
        fitting = False
    read = _read(distill, case.one, cluster) if name == "distill" else 0.0
    if not training.fits(read, cluster):
        changes, fitting = (*changes, *larger_device(read)), False
    needed = max(needed, cut, read)
    sent = 0.0
    phases += case.writing(cluster)
    for one, tokens in case.trainings():
        steps = tokens / one.step_tokens
        step = training.step_of(one, cluster, sharded=sharded)
        phases.append(_many(step, steps))
        sent += steps * step.sent
    return _stage(
        name, way, bound(phases, cluster), needed, figures[name],
        parts={key: value for key, value in {**memory, "cut": cut, "reading": read}.items() if
        value}, sent=sent, fits=fitting, changes=changes,
    )  # fmt: skip


def _way(section: Any) -> str:
    """How several ranks share a training."""
    sharding = getattr(section, "sharding", "none")  # of a recipe of spans there is none
    if sharding == "deepspeed":
        return f"ZeRO-{section.deepspeed.zero_stage}"
    return "FSDP" if sharding == "fsdp" else "DDP"


def _read(config: Any, one: training.Training, cluster: Cluster) -> float:
    """Of a rank while the teacher writes its file: the whole of it, or two layers at a time and the
    output layer."""
    if not one.signal_bytes or one.teacher is None or not isinstance(config, DistillConfig):
        return 0.0
    number, teacher = cluster.accelerator.number_bytes, one.teacher
    whole = OVERHEAD + training.whole_bytes(teacher, one.teacher_precision, number)
    if training.fits(whole, cluster) and config.teacher_loading != "streamed":
        return whole
    return OVERHEAD + number * (2.0 * teacher.layer_weights + teacher.output_weights)


def _cut(config: Any, one: training.Training) -> float:
    """Of one device before the training, while a student is cut from the teacher."""
    if not isinstance(config, DistillConfig) or config.student.model is not None:
        return 0.0
    assert one.teacher is not None
    if config.teacher_loading == "streamed":
        return 0.0
    return OVERHEAD + cut_bytes(one.teacher.weights, one.student.weights)


def _many(step: Phase, steps: float) -> Phase:
    return Phase(
        step.name,
        flops=steps * step.flops,
        traffic=steps * step.traffic,
        sent=steps * step.sent,
        storage=steps * step.storage,
    )


def _before(
    config: DistillConfig,
    teacher: decoder.Decoder | None,
    figures: Mapping[str, Figures],
    stored: float,
    cluster: Cluster,
) -> list[Phase]:
    """What the teacher reads before the training: for the cut on one device, for a file on all."""
    assert teacher is not None
    seen = row_tokens(figures) / 2
    phases = []
    if cut := cut_tokens(config):
        phases.append(reading(teacher, cut, seen, 0.0, Cluster(cluster.accelerator)))
    if stored:
        length = min(row_tokens(figures), config.sequence_tokens)
        rows = figures["curate"]["train_rows"] * length * len(config.voices)
        phases.append(
            reading(
                teacher,
                rows * computed_share(config, figures),
                seen,
                stored,
                cluster,
                config.teacher_precision,
            )
        )
    return phases
