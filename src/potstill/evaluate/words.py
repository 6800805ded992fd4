"""Figures as people read them, and what the figures allow one to say.

In: the numbers of report.json. Out: short texts. Knows nothing of files or pages.

The verdict is bound by one rule: a difference is claimed only if its whole interval lies on one
side of zero; otherwise the text says that it cannot be told from zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MISSING = "\N{EN DASH}"

NAMES = {
    "teacher": "Teacher",
    "undistilled": "Undistilled",
    "finetuned": "Fine-tuned only",
    "distilled": "Distilled",
    "gguf-f16": "GGUF F16",
    "gguf-q4_k_m": "GGUF Q4_K_M",
}


@dataclass(frozen=True)
class Measure:
    """How a metric is named, scaled and judged."""

    title: str
    unit: str
    lower_is_better: bool
    scale: float = 1.0
    digits: int | None = None


MEASURES = {
    "kl": Measure("KL to the teacher", "nats a token", True),
    "kl_answer": Measure("KL, answer tokens", "nats a token", True),
    "agreement": Measure("Top-1 agreement", "%", False, 100, 1),
    "agreement_answer": Measure("Agreement, answer tokens", "%", False, 100, 1),
    "perplexity": Measure("Perplexity", "", True),
    "perplexity_answer": Measure("Perplexity of the answer", "", True),
    "f1": Measure("Answer F1", "%", False, 100, 1),
    "em": Measure("Exact match", "%", False, 100, 1),
}
HEADLINES = ("kl", "agreement", "perplexity", "f1", "em")


def model_name(key: str) -> str:
    """What a model is called in tables; an unknown one keeps its own name."""
    return NAMES.get(key, key)


def figure(metric: str, value: float | None) -> str:
    """One value of a metric in its unit's scale, without the unit."""
    if value is None:
        return MISSING
    measure = MEASURES[metric]
    scaled = value * measure.scale
    return f"{scaled:.{measure.digits}f}" if measure.digits is not None else number(scaled)


def number(value: float | None) -> str:
    """Three significant digits, thousands apart: 28800.4 -> 28,800; 0.01234 -> 0.0123."""
    if value is None:
        return MISSING
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in decimal units, as shops and disks count them."""
    if value is None:
        return MISSING
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= power:
            scaled = value / power
            return f"{scaled:.2f} {unit}" if unit == "GB" else f"{scaled:.0f} {unit}"
    return f"{value:.0f} B"


def millions(value: float | None) -> str:
    """Parameters in millions, or billions."""
    if value is None:
        return MISSING
    return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.1f} M"


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def verdict(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was measured, as sentences: `made`, `claims` (intervals exclude zero), `open`."""
    models, differences = report["models"], report["differences"]
    found: dict[str, list[str]] = {"made": [], "claims": [], "open": []}
    teacher, student = models.get("teacher"), models.get("distilled")
    if teacher and student and teacher.get("parameters") and student.get("parameters"):
        share = 100 * student["parameters"] / teacher["parameters"]
        found["made"].append(
            f"The student has {millions(student['parameters'])} parameters, {share:.0f}% of its "
            f"teacher's {millions(teacher['parameters'])}."
        )
    for other, phrase in (
        ("undistilled", "the same student before distillation"),
        ("finetuned", "the same student fine-tuned on the text alone"),
    ):
        pair = differences.get(f"distilled_minus_{other}")
        if not pair or not student or other not in models:
            continue
        better, worse, unclear = [], [], []
        for metric in HEADLINES:
            if metric not in pair:
                continue
            text = _against(metric, student, models[other], pair[metric])
            if not pair[metric]["significant"]:
                unclear.append(text)
            elif (pair[metric]["value"] < 0) == MEASURES[metric].lower_is_better:
                better.append(text)
            else:
                worse.append(text)
        if better:
            found["claims"].append(f"Distilled is better than {phrase}: {'; '.join(better)}.")
        if worse:
            found["claims"].append(f"Distilled is worse than {phrase}: {'; '.join(worse)}.")
        if unclear:
            found["open"].append(f"Against {phrase}, no difference shown: {'; '.join(unclear)}.")
    return found


def _against(
    metric: str, a: Mapping[str, Any], b: Mapping[str, Any], difference: Mapping[str, Any]
) -> str:
    measure = MEASURES[metric]
    values = (figure(metric, side["metrics"][metric]["value"]) for side in (a, b))
    unit = f" {measure.unit}" if measure.unit else ""
    low, high = figure(metric, difference["low"]), figure(metric, difference["high"])
    return (
        f"{measure.title} {next(values)} against {next(values)}{unit} (difference {low} to {high})"
    )
