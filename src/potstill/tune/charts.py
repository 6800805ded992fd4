"""The study page's pictures as inline SVG text: trials over time, over a field, over each other.

In: points. Out: `<svg>` markup in the style of `core.charts`, whose palette it shares. Knows
nothing of studies.

Each mark's shape tells what came of its trial: a disc is complete, a cross was given up, a ring is
the best. Axes begin where the values do, for what is compared is trials with each other; values far
beyond the better half are drawn at the rim, lest one diverged trial flatten all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from potstill.core.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    picture,
    round_step,
    short,
)

LONGEST_LABEL = 12
WIDE, TALL = 940, 300


@dataclass(frozen=True)
class Point:
    """A trial in a picture. state: complete, pruned or best."""

    x: Any
    y: float
    state: str
    label: str = ""


class Axis:
    """Maps values to the stretch from `start` to `end`: linear, logarithmic, or one place a
    category (`categories` in order)."""

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        log: bool = False,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.start, self.end = start, end
        self.categories = list(categories) if categories is not None else None
        self.log = log and self.categories is None and min(values) > 0
        if self.categories is not None:
            self.low, self.high = -0.5, len(self.categories) - 0.5
            return
        low, high = min(values), max(values)
        if self.log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.04 * (high - low) or 0.04 * abs(high) or 0.5
        self.low, self.high = low - margin, high + margin

    def at(self, value: Any) -> float:
        """Where the value is; one beyond the axis is at its rim."""
        if self.categories is not None:
            place = float(self.categories.index(str(value)))
        else:
            place = math.log10(value) if self.log else float(value)
        share = min(max((place - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """(place, text) of each tick within the axis."""
        if self.categories is not None:
            return [(self.at(one), _cut(one)) for one in self.categories]
        if self.log:
            values = _log_ticks(10**self.low, 10**self.high, most)
        else:
            values = _range_ticks(self.low, self.high, most)
        return [(self.at(value), short(value)) for value in values]


def trials_chart(
    title: str,
    points: Sequence[Point],
    best: Sequence[float],
    y: str,
    *,
    complete: Sequence[float],
    minimize: bool,
) -> Markup:
    """Trials in the order in which they began, and `best` so far at each as a line. complete: the
    figures of complete trials, which the axis is made for."""
    if len(points) < 2:
        return Markup("")
    x_axis = Axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    y_axis = _y_axis(points, complete, minimize)
    path = " ".join(
        f"{'L' if index else 'M'}{x_axis.at(point.x):.1f} {y_axis.at(value):.1f}"
        for index, (point, value) in enumerate(zip(points, best, strict=True))
        if math.isfinite(value)
    )
    path = "M" + path[1:] if path else ""
    line = [f'<path class="curve train m-distilled" d="{path}"/>'] if path else []
    parts = _frame(x_axis, y_axis, "trial") + line + _marks(points, x_axis, y_axis)
    return picture(title, y, parts, [("best so far", "m-distilled", "train")])


def field_chart(
    title: str,
    points: Sequence[Point],
    y: str,
    *,
    log: bool,
    categories: Sequence[str] | None,
    complete: Sequence[float],
    minimize: bool,
) -> Markup:
    """One field's values against the figure. complete: the figures of complete trials."""
    if len(points) < 2:
        return Markup("")
    values = [0.0] if categories is not None else [float(point.x) for point in points]
    x_axis = Axis(values, LEFT, WIDTH - RIGHT, log=log, categories=categories)
    y_axis = _y_axis(points, complete, minimize)
    return picture(title, y, _frame(x_axis, y_axis, title) + _marks(points, x_axis, y_axis), [])


def front_chart(title: str, points: Sequence[Point], x: str, y: str) -> Markup:
    """Two figures against each other; the front's trials joined by a line and numbered."""
    if len(points) < 2:
        return Markup("")
    x_axis = Axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    y_axis = Axis([point.y for point in points], HEIGHT - BOTTOM, TOP)
    front = sorted((one for one in points if one.state == "best"), key=lambda one: one.x)
    path = " ".join(f"{x_axis.at(one.x):.1f},{y_axis.at(one.y):.1f}" for one in front)
    parts = _frame(x_axis, y_axis, x)
    parts.append(f'<polyline class="curve train m-distilled" points="{path}"/>')
    parts += _marks(points, x_axis, y_axis)
    parts += [
        f'<text class="name" x="{x_axis.at(one.x) + 9:.1f}" y="{y_axis.at(one.y) - 6:.1f}">'
        f"{escape(one.label)}</text>"
        for one in front
    ]
    return picture(title, y, parts, [("Pareto front", "m-distilled", "train")])


def curves_chart(
    title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], y: str
) -> Markup:
    """Each trial's validations: (state, points). Given-up ones are dashed and end in a cross."""
    drawn = [(state, points) for state, points in curves if len(points) >= 2]
    if not drawn:
        return Markup("")
    everything = [value for _, points in drawn for _, value in points if math.isfinite(value)]
    if not everything:
        return Markup("")
    x_axis = Axis([x for _, points in drawn for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = Axis(everything, HEIGHT - BOTTOM, TOP)
    parts = _frame(x_axis, y_axis, "optimizer step")
    for state, points in sorted(drawn, key=lambda one: one[0] == "best"):
        path = " ".join(
            f"{x_axis.at(x):.1f},{y_axis.at(value):.1f}"
            for x, value in points
            if math.isfinite(value)
        )
        parts.append(f'<polyline class="curve trial {state}" points="{path}"/>')
        if state == "pruned" and math.isfinite(points[-1][1]):
            parts.append(_mark(state, x_axis.at(points[-1][0]), y_axis.at(points[-1][1]), ""))
    return picture(title, y, parts, [])


def coordinates_chart(
    title: str, axes: Sequence[tuple[str, Axis]], lines: Sequence[tuple[str, Sequence[Any]]]
) -> Markup:
    """Parallel coordinates: an upright axis a name, a line a trial (state, value on each axis)."""
    if len(axes) < 2 or len(lines) < 2:
        return Markup("")
    gap = (WIDE - 2 * 60) / (len(axes) - 1)
    xs = [60 + gap * index for index in range(len(axes))]
    parts = []
    for state, values in sorted(lines, key=lambda one: one[0] == "best"):
        path = " ".join(
            f"{x:.1f},{axis.at(value):.1f}"
            for x, (_, axis), value in zip(xs, axes, values, strict=True)
        )
        parts.append(f'<polyline class="curve trial {state}" points="{path}"/>')
    for index, (x, (name, axis)) in enumerate(zip(xs, axes, strict=True)):
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TALL - 52}"/>')
        parts += [
            f'<text class="name" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(text)}</text>"
            for y, text in axis.ticks(4)
        ]
        # Neighbours' names on two heights, so that long ones do not meet.
        y = TALL - (30 if index % 2 == 0 else 12)
        parts.append(
            f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(name)}</text>'
        )
    return Markup(
        f'<figure class="wide-figure"><figcaption><b>{escape(title)}</b></figcaption>'
        f'<svg class="plot" viewBox="0 0 {WIDE} {TALL}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg></figure>'
    )


def upright_axis(
    values: Sequence[float], *, log: bool = False, categories: Sequence[str] | None = None
) -> Axis:
    """An axis of `coordinates_chart`."""
    return Axis(values, TALL - 58, TOP + 6, log=log, categories=categories)


def _y_axis(points: Sequence[Point], complete: Sequence[float], minimize: bool) -> Axis:
    """Thrice as far from the best value as the median of the complete ones; worse lies beyond."""
    known = [value for value in (point.y for point in points) if math.isfinite(value)]
    if not known:
        return Axis([0.0, 1.0], HEIGHT - BOTTOM, TOP)
    sign = 1 if minimize else -1
    anchors = sorted(sign * value for value in complete if math.isfinite(value))
    anchors = anchors or sorted(sign * value for value in known)
    good, median = anchors[0], anchors[len(anchors) // 2]
    reach = max(3 * (median - good), 0.05 * abs(good))
    shown = [value for value in known if sign * value <= good + reach]
    return Axis(shown or known, HEIGHT - BOTTOM, TOP)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str) -> list[str]:
    parts = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/>'
    ]
    for y, text in y_axis.ticks():
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for x, text in x_axis.ticks():
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _marks(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[str]:
    return [
        _mark(point.state, x_axis.at(point.x), y_axis.at(point.y), point.label)
        for point in sorted(points, key=lambda one: one.state == "best")
        if math.isfinite(point.y)
    ]


def _mark(state: str, x: float, y: float, label: str) -> str:
    title = f"<title>{escape(label)}</title>" if label else ""
    if state == "pruned":
        path = f"M{x - 3.5:.1f} {y - 3.5:.1f}l7 7M{x - 3.5:.1f} {y + 3.5:.1f}l7 -7"
        return f'<path class="cross" d="{path}">{title}</path>'
    ring = (
        f'<circle class="ring m-distilled" cx="{x:.1f}" cy="{y:.1f}" r="7.5"/>'
        if state == "best"
        else ""
    )
    return (
        f'<circle class="mark m-distilled" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>{ring}'
    )


def _range_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within [low, high]: steps of 1, 2, 2.5 or 5 x 10^n, at most about `most`."""
    step = round_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; powers alone where those are enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{f}e{n}") for n in powers for f in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) >= min(3, most):
            return found
    return found


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= LONGEST_LABEL
        else text[: LONGEST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
