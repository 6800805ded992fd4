"""Scores of many trainings and seeds into figures with intervals, a table and pictures.

In: what `teaching_arm.py` wrote, by arm and seed. Out: intervals, Markdown, SVG. Knows nothing of
how anything was trained.

Questions about one paragraph are no independent observations, so paragraphs are resampled; a
paragraph's sums are those of all its questions and all seeds. Intervals are 95% percentiles of the
paired or plain bootstrap (`core/scoring.py`); the spread over seeds stands beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from potstill.core.scoring import Interval, bootstrap_ratio, paired_bootstrap_ratio

SEED, RESAMPLES = 17, 4000


@dataclass(frozen=True)
class Figure:
    """A column: where sums and weights are, what is done to the ratio, how it is written."""

    title: str
    total: str
    weight: str | None
    exponential: bool = False
    percent: bool = False


FIGURES = {
    "kl": Figure("KL", "kl", "tokens"),
    "kl_answer": Figure("KL on answers", "kl_answer", "answer_tokens"),
    "agreement": Figure("agreement %", "agree", "tokens", percent=True),
    "perplexity": Figure("perplexity", "nll", "tokens", exponential=True),
    "f1": Figure("answer F1 %", "f1", None, percent=True),
}
Scores = Sequence[Mapping[str, Any]]
"""What `teaching_arm.py` wrote of one arm, a seed each."""


def columns(
    scores: Scores, paragraphs: Sequence[str], figure: Figure
) -> tuple[list[float], list[float]]:
    """Sums and weights by paragraph, over its questions and all seeds."""
    totals: dict[str, float] = dict.fromkeys(paragraphs, 0.0)
    weights: dict[str, float] = dict.fromkeys(paragraphs, 0.0)
    for one in scores:
        for place, paragraph in enumerate(paragraphs):
            if figure.weight is None:
                totals[paragraph] += one[figure.total][place]
                weights[paragraph] += 1.0
            else:
                totals[paragraph] += one["fidelity"][place][figure.total]
                weights[paragraph] += one["fidelity"][place][figure.weight]
    # Another number of seeds must not weigh more: what is compared is a mean over seeds.
    count = len(scores)
    return [value / count for value in totals.values()], [w / count for w in weights.values()]


def interval(scores: Scores, paragraphs: Sequence[str], name: str) -> Interval:
    """A figure of one arm."""
    figure = FIGURES[name]
    change = np.exp if figure.exponential else None
    return bootstrap_ratio(*columns(scores, paragraphs, figure), SEED, RESAMPLES, transform=change)


def difference(one: Scores, other: Scores, paragraphs: Sequence[str], name: str) -> Interval:
    """A figure of one arm minus that of the other, paired by paragraph."""
    figure = FIGURES[name]
    left, weights = columns(one, paragraphs, figure)
    right, _ = columns(other, paragraphs, figure)
    change = np.exp if figure.exponential else None
    return paired_bootstrap_ratio(left, right, weights, SEED, RESAMPLES, transform=change)


def share(one: Scores, other: Scores, paragraphs: Sequence[str], name: str) -> Interval:
    """A figure of one arm over that of the other, resampled together."""
    left, _ = columns(one, paragraphs, FIGURES[name])
    right, _ = columns(other, paragraphs, FIGURES[name])
    return bootstrap_ratio(left, right, SEED, RESAMPLES)


def spread(scores: Scores, paragraphs: Sequence[str], name: str) -> tuple[float, float]:
    """Least and largest of the seeds' own values."""
    values = [interval([one], paragraphs, name).value for one in scores]
    return min(values), max(values)


def written(value: Interval, figure: Figure) -> str:
    """`0.60 (0.58 to 0.62)`."""
    factor = 100 if figure.percent else 1
    digits = 1 if figure.percent or figure.exponential else 3
    return (
        f"{value.value * factor:.{digits}f} "
        f"({value.low * factor:.{digits}f} to {value.high * factor:.{digits}f})"
    )


def table(arms: Mapping[str, Scores], paragraphs: Sequence[str], names: Sequence[str]) -> str:
    """A Markdown table of some figures of all arms."""
    titles = [FIGURES[name].title for name in names]
    lines = [
        f"| training | seeds | {' | '.join(titles)} | KL of the seeds | tokens | seconds | GB |",
        f"|---|{'---|' * (len(names) + 5)}",
    ]
    for arm, scores in arms.items():
        cells = [written(interval(scores, paragraphs, name), FIGURES[name]) for name in names]
        first = scores[0]
        least, most = spread(scores, paragraphs, "kl")
        cells.append(f"{least:.3f} to {most:.3f}" if len(scores) > 1 else "")
        trained = [one["seconds"] for one in scores if one.get("seconds")]
        cells.append(f"{first['tokens'] / 1000:.0f}k" if "tokens" in first else "")
        cells.append(f"{statistics.median(trained):.0f}" if trained else "")
        cells.append(f"{max(one['peak_memory_bytes'] for one in scores) / 1e9:.1f}")
        lines.append(f"| {arm} | {len(scores)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(
    arms: Mapping[str, Scores], base: str, paragraphs: Sequence[str], names: Sequence[str]
) -> str:
    """A Markdown table of all arms minus one, paired by paragraph; bold: apart from 0."""
    titles = [FIGURES[name].title for name in names]
    lines = [f"| minus {base} | {' | '.join(titles)} |", f"|---|{'---|' * len(names)}"]
    for arm, scores in arms.items():
        if arm == base:
            continue
        cells = []
        for name in names:
            found = difference(scores, arms[base], paragraphs, name)
            text = written(found, FIGURES[name])
            cells.append(f"**{text}**" if found.low > 0 or found.high < 0 else text)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


ROW, LABEL, PLOT, TOP = 26, 190, 420, 44


def forest(
    title: str, values: Mapping[str, Interval], *, percent: bool = False, bare: float | None = None
) -> str:
    """An SVG picture: one line an arm, a dot and its interval; `bare` draws a line to compare."""
    factor = 100 if percent else 1
    top = _round_up(max(one.high for one in values.values()) * factor)
    height = TOP + ROW * len(values) + 40

    def x(value: float) -> float:
        return LABEL + PLOT * value * factor / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + PLOT + 90} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    bottom = TOP + ROW * len(values)
    for number in range(5):
        at = top / 4 * number / factor
        parts.append(
            f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{x(at):.1f}" y="{bottom + 20}" text-anchor="middle" fill="#555">'
            f"{at * factor:g}</text>"
        )
    if bare is not None:
        parts.append(
            f'<line x1="{x(bare):.1f}" x2="{x(bare):.1f}" y1="{TOP}" y2="{bottom}" '
            'stroke="#d55e00" stroke-dasharray="4 3"/>'
        )
    for number, (arm, one) in enumerate(values.items()):
        y = TOP + ROW * number + ROW / 2
        parts.append(
            f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(arm)}</text>'
            f'<line x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#0072b2" stroke-width="2.5"/>'
            f'<circle cx="{x(one.value):.1f}" cy="{y:.1f}" r="4.5" fill="#0072b2"/>'
            f'<text x="{x(one.high) + 10:.1f}" y="{y + 4:.1f}" fill="#333">'
            f"{one.value * factor:.{1 if percent else 2}f}</text>"
        )
    return "".join([*parts, "</svg>\n"])


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)
