"""Which file to take: a table of the files' sizes and losses, and the best one for a target.

In: the models of export.json. Out: rows of a table, a file's key and the reason. Pure and light.

The best file is the one with the smallest KL to the PyTorch student among those that meet the
target. Without a target it is the smallest one that still agrees with the student and is not
proven to answer worse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from potstill.errors import UsageError
from potstill.export.config import Quantisation

Models = Mapping[str, Mapping[str, Any]]
KINDS: tuple[str, ...] = ("f16", *get_args(Quantisation))
# Bytes a weight if all of a file is quantised as it is called; what falls back takes more.
LEAST_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q6_k": 210 / 256,
    "q5_k_m": 176 / 256,
    "q4_k_m": 144 / 256,
    "q4_0": 18 / 32,
}
GOOD_AGREEMENT = 0.9
"""Share of tokens at which a file must rank the same one first to be taken without a target."""
UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
TITLES = ("file", "disk", "memory", "tokens/s", "KL", "agreement", "F1")
"""KL and agreement are to the PyTorch student."""


@dataclass(frozen=True)
class Target:
    """What a file must keep to; None: any. Bytes on disk, bytes of memory, tokens a second."""

    fits: int | None = None
    memory: int | None = None
    speed: float | None = None

    @property
    def given(self) -> bool:
        return self != Target()

    def misses(self, model: Mapping[str, Any]) -> str | None:
        """Why the file is not within the target; None if it is."""
        if self.fits is not None and model["disk_bytes"] > self.fits:
            return f"{size(model['disk_bytes'])} on disk"
        if self.memory is not None and model["peak_memory_bytes"] > self.memory:
            return f"{size(model['peak_memory_bytes'])} of memory"
        if self.speed is not None and model["tokens_per_second"] < self.speed:
            return f"{model['tokens_per_second']:.1f} tokens/s"
        return None


def recommended(models: Models) -> tuple[str, str]:
    """The file to take without a target, and why."""
    good = [
        key
        for key, model in models.items()
        if _figure(model, "agreement_student") >= GOOD_AGREEMENT and not _proven_worse(model)
    ]
    if not good:
        return _nearest(models), "the nearest to the student; every smaller one loses much"
    best = min(good, key=lambda key: models[key]["disk_bytes"])
    return best, (
        f"the smallest that ranks the student's first token first at {GOOD_AGREEMENT:.0%} of the "
        "tokens or more and is not proven to answer worse"
    )


def chosen(models: Models, target: Target) -> str:
    """The best file within the target. Errors: UsageError that says what each file needs."""
    within = {key: model for key, model in models.items() if target.misses(model) is None}
    if not within:
        needs = ", ".join(f"{one['file']} {target.misses(one)}" for one in models.values())
        raise UsageError(
            f"No file is within the target: {needs}.",
            "Ask for less, or distil a smaller student (distill.student.memory or .speed).",
        )
    return _nearest(within)


def worth_making(weights: int, target: Target) -> Iterator[str]:
    """Kinds of file that could be within the target, for a student of so many weights."""
    for kind in KINDS:
        if kind == "f32":
            continue  # twice the size of F16 for nothing that can be measured
        least = LEAST_BYTES[kind] * weights
        limits = [one for one in (target.fits, target.memory) if one is not None]
        if all(least <= limit for limit in limits):
            yield kind


def rows(models: Models) -> list[tuple[str, ...]]:
    """One row a file for `TITLES`, the largest first."""
    ordered = sorted(models.values(), key=lambda model: -model["disk_bytes"])
    return [
        (
            str(model["file"]),
            size(model["disk_bytes"]),
            size(model["peak_memory_bytes"]),
            f"{model['tokens_per_second']:.1f}",
            _shown(model, "kl_student", "{:.2g}"),
            _shown(model, "agreement_student", "{:.1%}"),
            _shown(model, "f1", "{:.1%}"),
        )
        for model in ordered
    ]


def parse_size(text: str) -> int:
    """`100MB`, `1.5 GB`, `96MiB` in bytes. Errors: UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not float(found[1]):
        raise UsageError(f"{text!r} is no size.", "Write it as 100MB, 1.5GB or 96MiB.")
    return int(float(found[1]) * unit)


def size(count: float) -> str:
    """Bytes in decimal units."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _nearest(models: Models) -> str:
    return min(
        models, key=lambda key: (_figure(models[key], "kl_student"), models[key]["disk_bytes"])
    )


def _figure(model: Mapping[str, Any], name: str) -> float:
    return float(model["metrics"][name]["value"])


def _shown(model: Mapping[str, Any], name: str, form: str) -> str:
    figure = model["metrics"].get(name)
    return form.format(figure["value"]) if figure else "-"


def _proven_worse(model: Mapping[str, Any]) -> bool:
    change = model.get("f1_difference")
    return change is not None and change["high"] < 0
