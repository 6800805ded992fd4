"""What a study can look for: figures of a trial's student, and when each of them is known.

In: the folder of the distill stage, the results of evaluate. Out: numbers by name.
Knows nothing of how they were measured, or of searching.

A figure is known once the student is trained (`student`: measured on validation rows), once the
whole distill stage is done (`distill`), or once the student was compared with its teacher on test
rows (`evaluate`). A study does for each trial what its objective needs, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from potstill.distill.outcome import StudentOutcome

Compared = Literal["tokens", "spans", "marks"]
Level = Literal["student", "distill", "evaluate"]
LEVELS: tuple[Level, ...] = ("student", "distill", "evaluate")
RESOURCES = frozenset(
    {"disk_bytes", "peak_memory_bytes", "tokens_per_second", "time_to_first_token_s"}
    | {"questions_per_second", "answer_s"}
)
"""What evaluate measures of a model whatever it is asked."""


def _same(value: float) -> float:
    return value


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond that there is no number, and no student


@dataclass(frozen=True)
class Figure:
    """A figure's name for people, when it is known, and what it is read from.

    `source` is a name in a validation's figures, or in evaluate's of the distilled student;
    `form` makes the figure of that number. `compared`: it exists only where teacher and student are
    compared token by token, span by span, or by what they mark (task: spans); None: it always does,
    but for those of `WRITERS`.
    """

    title: str
    level: Level
    source: str
    better: Literal["minimize", "maximize"] = "minimize"
    form: Callable[[float], float] = _same
    compared: Compared | None = None

    @property
    def on_test_rows(self) -> bool:
        """Whether it is of the rows that judge the best student in the end."""
        return self.level == "evaluate" and self.source not in RESOURCES


FIGURES: dict[str, Figure] = {
    "validation_kl": Figure("KL to the teacher, validation", "student", "kl", compared="tokens"),
    "validation_kl_answer": Figure(
        "KL, answer tokens, validation", "student", "kl_answer", compared="tokens"
    ),
    "validation_span_kl": Figure(
        "Span KL to the teacher, validation", "student", "spans", compared="spans"
    ),
    "validation_span_kl_answer": Figure(
        "Span KL, answer, validation", "student", "spans_answer", compared="spans"
    ),
    "validation_agreement": Figure(
        "Top-1 agreement, validation", "student", "agreement", "maximize"
    ),
    "validation_perplexity": Figure("Perplexity, validation", "student", "ce", form=_exp),
    "validation_bits_per_byte": Figure(
        "Bits a byte, validation", "student", "bits_per_byte", compared="spans"
    ),
    "parameters": Figure("Parameters of the student", "student", "parameters"),
    "seconds": Figure("Seconds of the distill stage", "distill", "seconds"),
    "kl": Figure("KL to the teacher, test", "evaluate", "kl", compared="tokens"),
    "kl_answer": Figure("KL, answer tokens, test", "evaluate", "kl_answer", compared="tokens"),
    "span_kl": Figure("Span KL to the teacher, test", "evaluate", "span_kl", compared="spans"),
    "span_kl_answer": Figure(
        "Span KL, answer, test", "evaluate", "span_kl_answer", compared="spans"
    ),
    "agreement": Figure("Top-1 agreement, test", "evaluate", "agreement", "maximize"),
    "perplexity": Figure("Perplexity, test", "evaluate", "perplexity", compared="tokens"),
    "bits_per_byte": Figure("Bits a byte, test", "evaluate", "bits_per_byte", compared="spans"),
    "f1": Figure("Answer F1, test", "evaluate", "f1", "maximize"),
    "em": Figure("Exact match, test", "evaluate", "em", "maximize"),
    "disk_bytes": Figure("Bytes on disk", "evaluate", "disk_bytes"),
    "peak_memory_bytes": Figure("Peak memory in bytes", "evaluate", "peak_memory_bytes"),
    "tokens_per_second": Figure("Tokens a second", "evaluate", "tokens_per_second", "maximize"),
    "time_to_first_token_s": Figure(
        "Seconds to the first token", "evaluate", "time_to_first_token_s"
    ),
    "validation_mark_ce": Figure(
        "Cross-entropy of the marks, validation", "student", "ce", compared="marks"
    ),
    "marked_kl": Figure("KL of the marks, test", "evaluate", "marked_kl", compared="marks"),
    "same_span": Figure(
        "Same span as the teacher, test", "evaluate", "same_span", "maximize", compared="marks"
    ),
    "questions_per_second": Figure(
        "Questions a second", "evaluate", "questions_per_second", "maximize", compared="marks"
    ),
    "answer_s": Figure("Seconds to an answer", "evaluate", "answer_s", compared="marks"),
}
WRITERS = frozenset(
    {"validation_agreement", "validation_perplexity", "agreement"}
    | {"tokens_per_second", "time_to_first_token_s"}
)
"""Figures of every student that writes text, and of none that marks answers."""


def needed_level(names: Iterable[str]) -> Level:
    """How far a trial must go for these figures to be known."""
    return max((FIGURES[name].level for name in names), key=LEVELS.index)


def is_validation(name: str) -> bool:
    """Whether the figure is measured again and again while a student is trained."""
    return name.startswith("validation_")


def student_figures(outcome: StudentOutcome) -> dict[str, float]:
    """Every figure of level `student` that its validations hold."""
    known = {**outcome.best, "parameters": float(outcome.parameters)}
    return {
        name: figure.form(known[figure.source])
        for name, figure in FIGURES.items()
        if figure.level == "student" and figure.source in known
    }


def evaluated_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of level `evaluate` that the stage's results.json holds."""
    model = results["models"]["distilled"]
    metrics = {name: one["value"] for name, one in (model.get("metrics") or {}).items()}
    known = {**model, **metrics}
    return {
        name: float(known[figure.source])
        for name, figure in FIGURES.items()
        if figure.level == "evaluate" and isinstance(known.get(figure.source), int | float)
    }


def stage_seconds(events: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> float | None:
    """Seconds that the distill stage computed, over all interruptions; None if that is not known.

    events: the trial's own diary. A stage that was done before the trial began has no events
    there, and its manifest knows its time only if it was made in one go.
    """
    total, last, seen = 0.0, None, False
    for event in events:
        if event["stage"] != "distill" or event["kind"] == "skipped":
            continue
        if event["kind"] != "started" and last is not None:
            total += event["time"] - last
        last, seen = event["time"], True
    if seen:
        return total
    return None if manifest.get("resumed") else float(manifest["seconds"])
