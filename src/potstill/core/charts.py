"""The report's pictures as inline SVG text: curves and scatter plots, nothing to load.

In: points. Out: `<svg>` markup that takes its colours from the page's CSS variables, so one
picture serves light, dark and paper. Knows nothing of reports.

Series differ in colour (Okabe & Ito's palette, set in the page's CSS), in marker and in line,
so no reader depends on colour alone. All texts are escaped. Axes of amounts begin at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 440, 272
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 42
LETTER = 7.6  # width of an average letter where the page's font is wide and the screen narrow
MOST_POINTS = 500  # more would be finer than the picture's own grid


@dataclass(frozen=True)
class Line:
    """One curve. `style` is the CSS class that colours it; `kind` train is thin, else marked."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    kind: str = "validation"


@dataclass(frozen=True)
class Dot:
    """One model in a scatter plot; `low` and `high` draw its error bar."""

    label: str
    style: str
    shape: str
    x: float
    y: float
    low: float
    high: float


class _Frame:
    """Maps data to the picture's coordinates and draws the axes."""

    def __init__(self, x_top: float, y_top: float, x_label: str, y_label: str) -> None:
        self.x_ticks, self.y_ticks = ticks(x_top), ticks(y_top)
        self.x_top, self.y_top = self.x_ticks[-1], self.y_ticks[-1]
        self.x_label, self.y_label = x_label, y_label

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_top

    def y(self, value: float) -> float:
        share = min(max(value / self.y_top, 0.0), 1.0)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def draw(self) -> list[str]:
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            kind = "axis" if value == 0 else "grid"
            parts.append(
                f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
            )
        for value in self.x_ticks:
            x = self.x(value)
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                f"{short(value)}</text>"
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        return parts


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Curves over a common axis; empty markup if no curve has two points."""
    drawn = [
        Line(line.label, line.style, points, line.kind)
        for line in lines
        if len(points := _finite(line.points)) >= 2
    ]
    if not drawn:
        return Markup("")
    everything = [point for line in drawn for point in line.points]
    # one early spike of the training loss must not flatten everything that follows
    highest = _quantile(sorted(y for _, y in everything), 0.99)
    frame = _Frame(max(x for x, _ in everything), highest * 1.05, x_label, y_label)
    parts = frame.draw()
    for line in drawn:
        points = _thinned(line.points)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve {line.kind} {line.style}" points="{path}"/>')
        if line.kind != "train":
            parts += [
                f'<circle class="mark {line.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" '
                'r="2.6"/>'
                for x, y in points
            ]
    return picture(title, y_label, parts, [(line.label, line.style, line.kind) for line in drawn])


def scatter(
    title: str,
    dots: Sequence[Dot],
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Models as labelled points with vertical error bars; empty markup for fewer than two.

    front: points that a dashed line goes through, under the models: the best of each size.
    """
    drawn = [d for d in dots if all(map(math.isfinite, (d.x, d.y, d.low, d.high)))]
    if len(drawn) < 2:
        return Markup("")
    frame = _Frame(max(d.x for d in drawn), max(d.high for d in drawn), x_label, y_label)
    parts = frame.draw()
    if len(front) > 1:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float, float, float]] = []
    for dot in drawn:
        x, low, high = frame.x(dot.x), frame.y(dot.low), frame.y(dot.high)
        taken.append((x - 6, frame.y(dot.y) - 6, x + 6, frame.y(dot.y) + 6))
        taken.append((x - 4, high, x + 4, low))
        parts.append(
            f'<path class="whisker {dot.style}" d="M{x:.1f} {low:.1f}V{high:.1f}'
            f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
        )
    for dot in drawn:
        x, y = frame.x(dot.x), frame.y(dot.y)
        parts.append(f'<path class="mark {dot.style}" d="{_shape(dot.shape, x, y)}"/>')
        parts.append(_placed(dot.label, x, y, taken))
    return picture(title, y_label, parts, [])


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to the first one at or above `top`: steps of 1, 2, 2.5 or 5 x 10^n."""
    if not math.isfinite(top) or top <= 0:
        return [0.0, 1.0]
    step = round_step(top / 4)
    count = math.ceil(top / step - 1e-9)
    return [round(step * index, 12) for index in range(count + 1)]


def round_step(rough: float) -> float:
    """The first of 1, 2, 2.5 and 5 x 10^n that is not smaller."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def short(value: float) -> str:
    """A tick's text: 25000 -> 25k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of its neighbours, so nothing between is skipped."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _shape(name: str, x: float, y: float) -> str:
    """SVG path of a marker about 11 wide around (x, y)."""
    if name == "square":
        return f"M{x - 5:.1f} {y - 5:.1f}h10v10h-10z"
    if name == "diamond":
        return f"M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"
    if name == "up":
        return f"M{x:.1f} {y - 6:.1f}l6 10.5h-12z"
    if name == "down":
        return f"M{x:.1f} {y + 6:.1f}l6 -10.5h-12z"
    return f"M{x - 5.5:.1f} {y:.1f}a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z"


def _placed(label: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """The label where it hides least: beside, above or below its point."""
    width = LETTER * len(label)
    places = (
        (x + 10, y + 4, "start", x + 10),
        (x - 10, y + 4, "end", x - 10 - width),
        (x, y - 11, "middle", x - width / 2),
        (x, y + 20, "middle", x - width / 2),
        (x + 10, y - 11, "start", x + 10),
        (x + 10, y + 19, "start", x + 10),
        (x - 10, y - 11, "end", x - 10 - width),
        (x - 10, y + 19, "end", x - 10 - width),
        (x, y - 26, "middle", x - width / 2),
        (x, y + 35, "middle", x - width / 2),
        (x - 10, y - 26, "end", x - 10 - width),
        (x - 10, y + 34, "end", x - 10 - width),
    )

    def cost(place: tuple[float, float, str, float]) -> float:
        _, baseline, _, left = place
        box = (left, baseline - 12, left + width, baseline + 3)
        covered = sum(_overlap(box, other) for other in taken)
        outside = max(0.0, LEFT - 40 - box[0]) + max(0.0, box[2] - WIDTH)
        below = max(0.0, box[3] - (HEIGHT - BOTTOM)) + max(0.0, 2 - box[1])
        return covered + 50 * (outside + below)

    at_x, baseline, anchor, left = min(places, key=cost)
    taken.append((left, baseline - 12, left + width, baseline + 3))
    return (
        f'<text class="name" x="{at_x:.1f}" y="{baseline:.1f}" text-anchor="{anchor}">'
        f"{escape(label)}</text>"
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def picture(
    title: str, y_label: str, parts: Sequence[str], keys: Sequence[tuple[str, str, str]]
) -> Markup:
    """The figure: title, what is up the axis, the drawing, the key (label, style, kind)."""
    legend = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><path class="curve {kind} {style}" '
        f'd="M1 5H25"/>'
        + (f'<circle class="mark {style}" cx="13" cy="5" r="2.6"/>' if kind != "train" else "")
        + f"</svg>{escape(label)}</li>"
        for label, style, kind in keys
    )
    return Markup(
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(y_label)}</span></figcaption>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
        + (f'<ul class="key">{legend}</ul>' if legend else "")
        + "</figure>"
    )
