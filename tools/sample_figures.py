"""The two drawings of the sample handbook, as reportlab graphics.

In: nothing. Out: `figure(name)`, a `Drawing` 440 points wide. Knows nothing of pages or files.
"""

from __future__ import annotations

from reportlab.graphics.shapes import Drawing, Group, Line, Polygon, Rect, String
from reportlab.lib.colors import Color, HexColor

INK = HexColor("#24343c")
PALE = HexColor("#e8eeea")
WARM = HexColor("#c8643c")
COOL = HexColor("#3f7d94")
GOLD = HexColor("#d9a441")
WIDTH = 440.0


def label(
    x: float, y: float, text: str, size: float = 8.5, anchor: str = "middle", bold: bool = False
) -> String:
    font = "Helvetica-Bold" if bold else "Helvetica"
    return String(x, y, text, fontName=font, fontSize=size, fillColor=INK, textAnchor=anchor)


def arrow(x1: float, x2: float, y: float, color: Color, width: float = 2.0) -> Group:
    """A horizontal arrow from x1 to x2."""
    way = 1 if x2 > x1 else -1
    head = Polygon(
        [x2, y, x2 - way * 8, y + 4, x2 - way * 8, y - 4], fillColor=color, strokeColor=None
    )
    return Group(Line(x1, y, x2 - way * 7, y, strokeColor=color, strokeWidth=width), head)


def tunnel() -> Drawing:
    """A drying tunnel from the side: racks go one way, air goes the other."""
    drawing = Drawing(WIDTH, 132)
    left, right, floor, roof = 70.0, 370.0, 34.0, 92.0
    third = (right - left) / 3
    fills = (HexColor("#dbe8ec"), HexColor("#efe9dd"), HexColor("#f3d9cc"))
    for number, (name, fill) in enumerate(
        zip(("Cool end", "Middle", "Warm end"), fills, strict=True)
    ):
        drawing.add(
            Rect(
                left + number * third, floor, third, roof - floor, fillColor=fill, strokeColor=None
            )
        )
        drawing.add(label(left + (number + 0.5) * third, roof - 13, name, bold=True))
    drawing.add(
        Rect(
            left, floor, right - left, roof - floor, fillColor=None, strokeColor=INK, strokeWidth=1
        )
    )
    for number in range(9):
        x = left + 18 + number * 31
        drawing.add(Rect(x, floor + 3, 16, 18, fillColor=PALE, strokeColor=INK, strokeWidth=0.7))
        for rod in (5, 9, 13):
            drawing.add(
                Line(x, floor + rod + 3, x + 16, floor + rod + 3, strokeColor=INK, strokeWidth=0.5)
            )
    drawing.add(arrow(left + 20, right - 20, 20, COOL))
    drawing.add(label((left + right) / 2, 7, "Racks move to the warm end"))
    drawing.add(arrow(right - 20, left + 20, roof - 28, WARM))
    drawing.add(
        Polygon(
            [left + 26, roof, left + 34, roof + 16, left + 52, roof + 16, left + 44, roof],
            fillColor=PALE,
            strokeColor=INK,
            strokeWidth=0.8,
        )
    )
    drawing.add(label(left + 58, roof + 7, "Louvre", anchor="start"))
    drawing.add(label(right - 4, roof + 7, "Hot air enters behind the hot damper", anchor="end"))
    drawing.add(label(left - 8, floor + 24, "Wet racks in", anchor="end"))
    drawing.add(label(right + 8, floor + 24, "Dried out", anchor="start"))
    return drawing


def power() -> Drawing:
    """Horizontal bars: hours of one day by the source of power."""
    drawing = Drawing(WIDTH, 96)
    rows = (
        ("Perpetua turns", 15.0, COOL, "15 hours"),
        ("Batteries are charging", 4.3, GOLD, "4 h 20 min"),
        ("Slack water on batteries", 3.2, WARM, "3 h 10 min"),
    )
    left, scale, height = 122.0, 15.0, 17.0
    for number, (name, hours, color, text) in enumerate(rows):
        y = 70.0 - number * 25
        drawing.add(Rect(left, y, hours * scale, height, fillColor=color, strokeColor=None))
        drawing.add(label(left - 8, y + 5, name, anchor="end"))
        drawing.add(label(left + hours * scale + 6, y + 5, text, anchor="start", bold=True))
    drawing.add(Line(left, 14, left, 92, strokeColor=INK, strokeWidth=0.8))
    for hour in range(0, 19, 3):
        x = left + hour * scale
        drawing.add(Line(x, 14, x, 11, strokeColor=INK, strokeWidth=0.8))
        drawing.add(label(x, 2, str(hour), size=7.5))
    drawing.add(Line(left, 14, left + 18 * scale, 14, strokeColor=INK, strokeWidth=0.8))
    return drawing


def figure(name: str) -> Drawing:
    """The drawing that `![caption](figure:name)` in the handbook asks for."""
    return {"tunnel": tunnel, "power": power}[name]()
