"""The data card's pictures as inline SVG: bars, histograms, strips of documents.

In: counts. Out: `<figure>` markup in the style of `core.charts`, whose page and palette it shares.
Every number is also written beside its bar. Splits differ in pattern as well as colour (Okabe &
Ito's), so that neither colour-blind readers nor paper lose them. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from potstill.core.charts import ticks

WIDTH = 520
NAME, COUNT = 170, 62  # room for a bar's name before it, and its count after it
ROW, BAR = 24, 15
LONGEST_NAME = 27
SPLITS = ("train", "validation", "test", "rejected")
PATTERNS = Markup(
    '<svg class="patterns" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="p-validation" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="f-validation soft" width="6" height="6"/>'
    '<rect class="f-validation" width="3" height="6"/></pattern>'
    '<pattern id="p-test" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect class="f-test soft" width="6" height="6"/><circle class="f-test" cx="3" cy="3" r="1.8"/>'
    "</pattern>"
    '<pattern id="p-rejected" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect class="f-rejected soft" width="6" height="6"/>'
    '<path class="l-rejected" d="M0 3H6M3 0V6"/></pattern></defs></svg>'
)
"""Once a page, before the first picture."""


def stacked(
    title: str, bars: Mapping[str, Mapping[str, int]], note: str = "", key: bool = True
) -> Markup:
    """Bars of splits (name -> split -> count), longest first as they come; empty for none.

    key: whether a legend says which split is which.
    """
    bars = {name: parts for name, parts in bars.items() if sum(parts.values())}
    if not bars:
        return Markup("")
    most = max(sum(parts.values()) for parts in bars.values())
    drawn = []
    for place, (name, parts) in enumerate(bars.items()):
        y, x = place * ROW + 4, float(NAME)
        drawn.append(_name(name, y))
        for split in SPLITS:
            width = (WIDTH - NAME - COUNT) * parts.get(split, 0) / most
            if width:
                drawn.append(
                    f'<rect class="b-{split}" x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" '
                    f'height="{BAR}"><title>{split}: {parts[split]:,}</title></rect>'
                )
            x += width
        drawn.append(_count(x, y, sum(parts.values())))
    keys = [one for one in SPLITS if key and any(parts.get(one) for parts in bars.values())]
    return _figure(title, note, drawn, WIDTH, len(bars) * ROW + 6, keys)


def bars(
    title: str, counts: Mapping[str, int], style: str, note: str = "", most: int = 14
) -> Markup:
    """Plain bars; `style` names the split whose pattern they have. Beyond `most`, the rest in one.

    Empty markup for no counts.
    """
    shown = dict(list(counts.items())[:most])
    if rest := sum(counts.values()) - sum(shown.values()):
        shown[f"{len(counts) - most} others"] = rest
    return stacked(title, {name: {style: count} for name, count in shown.items()}, note, key=False)


def histogram(title: str, figures: Mapping[str, Any], unit: str) -> Markup:
    """Equal bins from 0 up (`card.histogram`); empty markup for no values."""
    counts = figures["counts"]
    if not counts:
        return Markup("")
    left, right, top, bottom, width, height = 52, 12, 10, 40, WIDTH, 210
    upright = ticks(max(counts))
    step = (width - left - right) / len(counts)
    drawn = []
    for value in upright:
        y = height - bottom - (height - top - bottom) * value / upright[-1]
        kind = "axis" if value == 0 else "grid"
        drawn.append(
            f'<line class="{kind}" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>'
        )
    for place, count in enumerate(counts):
        tall = (height - top - bottom) * count / upright[-1]
        low, high = place * figures["width"], (place + 1) * figures["width"] - 1
        last = place == len(counts) - 1
        span = f"{low} or more" if last else f"{low}" if low == high else f"{low} to {high}"
        drawn.append(
            f'<rect class="b-train" x="{left + place * step + 0.5:.1f}" '
            f'y="{height - bottom - tall:.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{tall:.1f}"><title>{span} {unit}: {count:,}</title></rect>'
        )
    every = max(1, len(counts) // 6)
    for place in range(0, len(counts), every):
        drawn.append(
            f'<text x="{left + place * step:.1f}" y="{height - bottom + 16}" '
            f'text-anchor="middle">{place * figures["width"]}</text>'
        )
    drawn.append(
        f'<text class="label" x="{(left + width - right) / 2}" y="{height - 5}" '
        f'text-anchor="middle">{escape(unit)}</text>'
    )
    note = f"median {figures['median']}, 95% up to {figures['p95']}, longest {figures['longest']:,}"
    return _figure(title, note, drawn, width, height, ())


def strips(title: str, documents: Sequence[Mapping[str, Any]], most: int = 40) -> Markup:
    """Each document as a strip from its first to its last character: what is asked about is
    filled, and a stroke stands where an answer is. The largest ones, if there are many."""
    if not documents:
        return Markup("")
    largest = sorted(documents, key=lambda one: -one["characters"])[:most]
    wide, name, count = 940, 232, 190
    inner = wide - name - count
    drawn = []
    for place, one in enumerate(largest):
        y, scale = place * 26 + 4, inner / one["characters"]
        drawn.append(_name(one["source"], y, name, 32))
        drawn.append(f'<rect class="strip" x="{name}" y="{y}" width="{inner}" height="{BAR}"/>')
        for start, end in one["ranges"]:
            drawn.append(
                f'<rect class="b-covered" x="{name + start * scale:.1f}" y="{y}" '
                f'width="{max((end - start) * scale, 0.8):.1f}" height="{BAR}"/>'
            )
        strokes = "".join(f"M{name + answer * scale:.1f} {y}v{BAR}" for answer in one["answers"])
        if strokes:
            drawn.append(f'<path class="answers" d="{strokes}"/>')
        drawn.append(
            f'<text class="name" x="{wide - count + 8}" y="{y + 12}">{one["share"]:.0%} asked '
            f"about, {one['rows']:,} rows</text>"
        )
    note = "filled: passages that kept rows ask about; strokes: where their answers stand"
    return _figure(title, note, drawn, wide, len(largest) * 26 + 6, (), "wide-figure")


def _name(text: str, y: int, end: int = NAME, longest: int = LONGEST_NAME) -> str:
    shown = text.replace("_", " ")
    if len(shown) > longest:
        shown = shown[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return (
        f'<text class="name" x="{end - 8}" y="{y + 12}" text-anchor="end">{escape(shown)}'
        f"<title>{escape(text)}</title></text>"
    )


def _count(x: float, y: int, count: int) -> str:
    return f'<text class="name" x="{x + 6:.1f}" y="{y + 12}">{count:,}</text>'


def _figure(
    title: str,
    note: str,
    drawn: Sequence[str],
    width: int,
    height: int,
    keys: Sequence[str],
    kind: str = "",
) -> Markup:
    legend = "".join(
        f'<li><svg viewBox="0 0 16 12" aria-hidden="true"><rect class="b-{key}" width="16" '
        f'height="12"/></svg>{key}</li>'
        for key in keys
    )
    return Markup(
        f'<figure class="{kind}"><figcaption><b>{escape(title)}</b><span>{escape(note)}</span>'
        f'</figcaption><svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(drawn)}</svg>'
        + (f'<ul class="key">{legend}</ul>' if legend else "")
        + "</figure>"
    )
