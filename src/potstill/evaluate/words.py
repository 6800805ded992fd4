"""Figures as people read them, and what the figures allow one to say.

In: the numbers of report.json. Out: short texts. Knows nothing of files or pages.

The verdict is bound by one rule: a difference is claimed only if its whole interval lies on one
side of zero; otherwise the text says that it cannot be told from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

NAMES = {
    "teacher": "Teacher",
    "uncorrected": "Teacher, uncorrected",
    "undistilled": "Undistilled",
    "finetuned": "Fine-tuned only",
    "distilled": "Distilled",
}


@dataclass(frozen=True)
class Measure:
    """How a metric is named, scaled and judged."""

    title: str
    unit: str
    lower_is_better: bool | None
    """None: neither is; a difference is one, and no more."""
    scale: float = 1.0
    digits: int | None = None


MEASURES = {
    "kl": Measure("KL to the teacher", "nats a token", True),
    "kl_answer": Measure("KL, answer tokens", "nats a token", True),
    "reverse_kl": Measure("Reverse KL", "nats a token", True),
    "reverse_kl_answer": Measure("Reverse KL, answer tokens", "nats a token", True),
    "agreement": Measure("Top-1 agreement", "%", False, 100, 1),
    "agreement_answer": Measure("Agreement, answer tokens", "%", False, 100, 1),
    "top5": Measure("Top-5 agreement", "%", False, 100, 1),
    "top5_answer": Measure("Top-5 agreement, answer tokens", "%", False, 100, 1),
    "rank_correlation": Measure("Rank correlation of the top 10", "", False, 1, 3),
    "rank_correlation_answer": Measure("Rank correlation, answer tokens", "", False, 1, 3),
    "ece": Measure("Calibration error (ECE)", "%", True, 100, 1),
    "ece_answer": Measure("Calibration error, answer tokens", "%", True, 100, 1),
    "perplexity": Measure("Perplexity", "", True),
    "perplexity_answer": Measure("Perplexity of the answer", "", True),
    "span_kl": Measure("Span KL to the teacher", "nats a span", True),
    "span_kl_answer": Measure("Span KL, answer", "nats a span", True),
    "bits_per_byte": Measure("Bits a byte", "", True),
    "bits_per_byte_answer": Measure("Bits a byte of the answer", "", True),
    "marked_kl": Measure("KL of the marks to the teacher", "nats", True),
    "same_span": Measure("Same span as the teacher", "%", False, 100, 1),
    "f1": Measure("Answer F1", "%", False, 100, 1),
    "em": Measure("Exact match", "%", False, 100, 1),
    "bleu": Measure("Sentence BLEU", "", False, 100, 1),
    "corpus_bleu": Measure("Corpus BLEU", "", False, 100, 1),
    "chrf": Measure("chrF", "", False, 100, 1),
    "rouge1": Measure("ROUGE-1", "", False, 100, 1),
    "rouge2": Measure("ROUGE-2", "", False, 100, 1),
    "rougeL": Measure("ROUGE-L", "", False, 100, 1),
    "refusal_rate": Measure("Refusals", "%", None, 100, 1),
    "grounded": Measure("Words found in the passage", "%", False, 100, 1),
}
HEADLINES = (
    "kl", "span_kl", "marked_kl", "agreement", "same_span", "perplexity", "bits_per_byte",
    "f1", "em",
)  # fmt: skip
TO_THE_TEACHER = frozenset({"kl", "span_kl", "marked_kl", "agreement", "same_span"})
"""Figures of likeness to the teacher: of the teacher itself they say nothing."""
APART, BITS = "span_kl", "bits_per_byte"
COMPARED = (
    ("distilled", "Distilled", "undistilled", "the same student before distillation"),
    ("distilled", "Distilled", "finetuned", "the same student fine-tuned on the text alone"),
    ("teacher", "The corrected teacher", "uncorrected", "the teacher as it came"),
)
"""Which model is compared with which in the verdict, and what they are called there."""
OUTCOMES = {"better": "better", "worse": "worse", "unclear": "not told apart"}
"""What the verdict says of an interval of a difference, by `outcome`."""


def marks_spans(report: Mapping[str, Any]) -> bool:
    """Whether the run's student marks answers instead of writing them."""
    return report.get("task") == "spans"


def speed_field(report: Mapping[str, Any]) -> str:
    """Which of a model's figures says how fast it is."""
    return "questions_per_second" if marks_spans(report) else "tokens_per_second"


def model_name(key: str) -> str:
    """What a model is called in tables; an unknown one keeps its own name."""
    if key.startswith("gguf-"):
        return f"GGUF {key.removeprefix('gguf-').upper()}"
    if key.startswith("onnx-"):
        return f"ONNX {key.removeprefix('onnx-').upper()}"
    return NAMES.get(key, key)


def headlines(report: Mapping[str, Any]) -> list[str]:
    """The metrics that are shown first: those that a model has.

    Bits a byte only where the tokenizers differ; elsewhere perplexity says the same.
    """
    owned = {name for model in report["models"].values() for name in model.get("metrics") or {}}
    return [name for name in HEADLINES if name in owned and (name != BITS or APART in owned)]


def outcome(metric: str, pair: Mapping[str, Any]) -> str:
    """What a paired difference shows: "better", "worse", "different" or "unclear"."""
    lower_is_better = MEASURES[metric].lower_is_better
    if not pair["significant"]:
        return "unclear"
    if lower_is_better is None:
        return "different"
    return "better" if (pair["value"] < 0) == lower_is_better else "worse"


def figure(metric: str, value: float | None) -> str:
    """One value of a metric in its unit's scale, without the unit."""
    if value is None:
        return MISSING
    measure = MEASURES[metric]
    scaled = value * measure.scale
    if measure.digits is None:
        return number(scaled)
    return f"{scaled:.{measure.digits}f}".replace("-", MINUS)


def number(value: float | None) -> str:
    """Three significant digits, thousands apart: 28800.4 -> 28,800; 0.01234 -> 0.0123."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 1e9 or 0 < size < 0.0005:
        text = f"{value:.2e}"
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return "0" if value == 0 else text.replace("-", MINUS, 1) if value < 0 else text


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


def disk_bytes(model: Mapping[str, Any]) -> float | None:
    """What one must store to have the model: the file its reference names, else its weights.

    A teacher that comes as a GGUF is unpacked to several times its size before it is measured;
    the unpacked copy is no fair size to compare a student's with.
    """
    found = model.get("reference_disk_bytes") or model.get("disk_bytes")
    return None if found is None else float(found)


def verdict(report: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What was measured, in words.

    `made`: sentences. `claims` (of some metric the interval excludes zero) and `open` (of none):
    one for each pair of models, `{"text": a sentence's beginning, "figures": [one phrase a
    metric]}`.
    """
    models, differences = report["models"], report["differences"]
    found: dict[str, list[Any]] = {"made": [], "claims": [], "open": []}
    teacher, student = models.get("teacher"), models.get("distilled")
    if teacher and student and teacher.get("parameters") and student.get("parameters"):
        share = 100 * student["parameters"] / teacher["parameters"]
        found["made"].append(
            f"The student has {millions(student['parameters'])} parameters, {share:.0f}% of its "
            f"teacher's {millions(teacher['parameters'])}."
        )
    for name, subject, other, phrase in COMPARED:
        pair, model = differences.get(f"{name}_minus_{other}"), models.get(name)
        if not pair or not model or other not in models:
            continue
        if other == "finetuned" and marks_spans(report):
            phrase = "the same student trained on the rows alone"
        own = [one for one in headlines(report) if name != "teacher" or one not in TO_THE_TEACHER]
        sorted_out: dict[str, list[str]] = {kind: [] for kind in OUTCOMES}
        for metric in (one for one in own if one in pair):
            sorted_out[outcome(metric, pair[metric])].append(metric)
        told = {OUTCOMES[kind]: metrics for kind, metrics in sorted_out.items() if metrics}
        if told:
            parts = [f"{how} in {_listed(metrics)}" for how, metrics in told.items()]
            figures = [
                f"{how}: {_against(metric, model, models[other], pair[metric])}"
                for how, metrics in told.items()
                for metric in metrics
            ]
            text = f"{subject}, beside {phrase}, is {'; '.join(parts)}"
            kind = "claims" if sorted_out["better"] or sorted_out["worse"] else "open"
            found[kind].append({"text": text, "figures": figures})
    return found


def _listed(metrics: Sequence[str]) -> str:
    """Titles of metrics within a sentence."""
    titles = [MEASURES[one].title for one in metrics]
    plain = [one[0].lower() + one[1:] if one[1].islower() else one for one in titles]
    return " and ".join([", ".join(plain[:-1]), plain[-1]] if plain[1:] else plain)


def _against(
    metric: str, a: Mapping[str, Any], b: Mapping[str, Any], difference: Mapping[str, Any]
) -> str:
    measure = MEASURES[metric]
    left, right = (figure(metric, side["metrics"][metric]["value"]) for side in (a, b))
    unit = "" if not measure.unit else "%" if measure.unit == "%" else f" {measure.unit}"
    low, high = figure(metric, difference["low"]), figure(metric, difference["high"])
    return f"{measure.title} {left} against {right}{unit}, difference {low} to {high}"
