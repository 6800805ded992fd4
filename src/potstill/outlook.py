"""What a run would do, and whether this machine can: the plan of a recipe.

In: the planned steps, the models, the machine's memory and disks. Out: a `Plan`, with what a run
is refused for. Starts and fetches nothing. Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

from potstill.core import machine
from potstill.core.runner import PlannedStep
from potstill.costs.stages import ClusterPlan
from potstill.errors import MachineError, PotstillError, UnavailableError
from potstill.models import hub
from potstill.models.cache import cache_folder
from potstill.needs import PACKAGE, ModelNeed

CLEARLY = 1.25
"""Estimates are rough: a run is refused only where it needs more than so many times what there
is."""
UNPACKED = 6  # times a package's bytes on disk: as it came, and dequantised to float32, about


@dataclass(frozen=True)
class Shortage:
    """Memory or disk that the plan needs and this machine does not have."""

    what: str
    """memory or disk."""
    needed: float
    """Bytes, about."""
    have: float
    """Bytes."""
    refused: bool
    """Whether it is so clear that a run does not begin."""
    message: str
    remedy: str


@dataclass(frozen=True)
class Plan(Sequence[PlannedStep]):
    """What a run would do now: the steps, in order; what must be fetched; what stands in the way.

    A sequence of its steps.
    """

    steps: tuple[PlannedStep, ...]
    models: tuple[ModelNeed, ...]
    """All that the recipe names, those that are here included."""
    shortages: tuple[Shortage, ...]
    assumes: str = ""
    """What the figures are for, where files are still to come: 1,000 rows. Else empty."""
    cluster: ClusterPlan | None = None
    """What every stage would take on the cluster that was asked about, run anew."""

    @overload
    def __getitem__(self, place: int) -> PlannedStep: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[PlannedStep]: ...
    def __getitem__(self, place: int | slice) -> PlannedStep | Sequence[PlannedStep]:
        return self.steps[place]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def downloads(self) -> tuple[ModelNeed, ...]:
        """The models that are not on this machine."""
        return tuple(one for one in self.models if not one.here)

    @property
    def obstacles(self) -> tuple[PotstillError, ...]:
        """What `run` refuses for, each once: models that cannot be had, files that are not there,
        memory and disk that are clearly too little. Nothing for stages that are finished."""
        waiting = [step for step in self.steps if step.action != "reuse"]
        names = {step.name for step in waiting}
        found = [step.problem for step in waiting if step.problem is not None]
        for one in self.models:
            if one.problem and one.sections & names:
                found.append(UnavailableError(one.problem, one.remedy))
        found += [MachineError(one.message, one.remedy) for one in self.shortages if one.refused]
        return tuple({one.message: one for one in found}.values())

    @property
    def tight(self) -> tuple[Shortage, ...]:
        """Where estimates are above what there is, but not so far that a run is refused."""
        return tuple(one for one in self.shortages if not one.refused)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "steps": [
                {**asdict(replace(step, problem=None)), "problem": str(step.problem or "")}
                for step in self.steps
            ],
            "downloads": [{**asdict(one), "role": one.role} for one in self.downloads],
            "obstacles": [one.as_dict for one in self.obstacles],
            "tight": [asdict(one) for one in self.tight],
            "assumes": self.assumes,
            "times_are_for": this_processor(),
            "cluster": self.cluster.as_dict() if self.cluster else None,
        }


def this_processor() -> str:
    """The machine that a plan's times are for."""
    cores = machine.usable_cores()
    return f"{cores} core{'s' if cores > 1 else ''} of {machine.processor()}"


def shortages(
    steps: Sequence[PlannedStep],
    models: Sequence[ModelNeed],
    store: Path,
    eases: Mapping[str, str],
) -> list[Shortage]:
    """Where what is left of a plan needs more than this machine has.

    store: where results go. eases: by stage, what takes less memory. A stage's estimate is already
    the least that its settings allow: a teacher that may be read layer by layer is reckoned so.
    """
    left = [step for step in steps if step.action != "reuse"]
    found = [_memory(step, eases.get(step.name, "")) for step in left]
    return [one for one in (*found, *_disks(left, models, store)) if one is not None]


def _memory(step: PlannedStep, eases: str) -> Shortage | None:
    needed, have = step.estimate.get("memory_bytes", 0.0), machine.most_memory_bytes()
    if have is None or needed <= have:
        return None
    advised = " See what `potstill plan` proposes." if step.advice else ""
    return Shortage(
        "memory",
        needed,
        have,
        # With a graphics processor most of it is there, and how much is not known.
        needed > CLEARLY * have and not machine.gpus(),
        f"{step.name} needs about {gigabytes(needed)} of memory; this machine has "
        f"{gigabytes(have)}.",
        f"{eases}{advised} Or use smaller models, or a machine with more memory.".strip(),
    )


def _disks(
    left: Sequence[PlannedStep], models: Sequence[ModelNeed], store: Path
) -> Iterator[Shortage]:
    """By disk, since results, the hub's cache and that of packages may lie on one or on several."""
    # What a stage that goes on has written already is not free any more; how much, nobody counted.
    fresh = [step for step in left if step.action != "resume"]
    needs = [(store, step.estimate.get("disk_bytes", 0.0)) for step in fresh]
    for one in models:
        size = float(one.download_bytes or 0)
        if one.reference.startswith(PACKAGE):
            needs.append((cache_folder(), UNPACKED * size))
        else:
            needs.append((hub.cache(), size))
    disks: dict[int, list[tuple[Path, float]]] = defaultdict(list)
    for folder, size in needs:
        existing = folder
        while not existing.exists():
            existing = existing.parent
        disks[existing.stat().st_dev].append((folder, size))
    for parts in disks.values():
        folder, needed = parts[0][0], sum(size for _, size in parts)
        have = machine.free_disk_bytes(folder)
        if needed > have:
            yield Shortage(
                "disk",
                needed,
                have,
                needed > CLEARLY * have,
                f"The run needs about {gigabytes(needed)} of disk for models and results; "
                f"{gigabytes(have)} are free where {folder} is.",
                "Free some, or put results and caches elsewhere (POTSTILL_STORE, POTSTILL_CACHE, "
                "HF_HOME).",
            )


def gigabytes(count: float) -> str:
    """For people: 31 GB, 2.4 GB, 0.3 GB."""
    return f"{count / 1e9:.0f} GB" if count >= 1e10 else f"{count / 1e9:.1f} GB"
