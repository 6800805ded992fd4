"""Drift as one self-contained page: no scripts, no network, light, dark and print.

In: what `report.summary` says. Out: HTML. All texts are escaped by the template engine. Computes no
statistic.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill.core.charts import Line, line_chart
from potstill.core.pages import environment
from potstill.serve.windows import SIGNALS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""What a browser lets the page do: nothing but its own style."""
FEW_ROWS = 250
"""Of fewer training questions the luck of the draw shows: some references alarm often."""
DRAWN = 200  # windows in the chart
LISTED = 50  # alarms in the table
WIDEST = 12  # cells of one signal's histogram
COLOURS = (*(f"r-{place}" for place in range(6)), "m-other")
"""One for each signal, of the page's style."""
STATES = {
    "none": "No window is full yet.",
    "calm": "Live questions and answers are like those that the student was taught.",
    "alarm": "Live traffic has moved away from what the student was taught.",
    "dismissed": "The newest alarm was marked as false.",
}


def page(drift: dict[str, Any]) -> str:
    """The page."""
    engine = environment(Path(__file__).parent / "templates")
    variants = [
        _variant(name, about, [one for one in drift["windows"] if one["variant"] == name])
        for name, about in drift["variants"].items()
    ]
    alarms = [_alarm(one) for one in reversed(drift["windows"]) if one["alarm"]]
    return engine.get_template("drift.html.j2").render(
        run=drift["run"],
        requests=drift["requests"],
        off=drift["off"],
        variants=variants,
        alarms=alarms[:LISTED],
        more=max(0, len(alarms) - LISTED),
        made=when(time.time()),
    )


def when(seconds: float) -> str:
    """A moment for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def share(value: float) -> str:
    """A share for people."""
    return f"{100 * value:.1f}%"


def rounded(value: float) -> str:
    """A statistic or p-value for people."""
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def _variant(name: str, about: dict[str, Any], windows: list[dict[str, Any]]) -> dict[str, Any]:
    newest = windows[-1] if windows else None
    found: dict[str, Any] = {"name": name, **about, "words": STATES[about["state"]]}
    if newest is None:
        return found | {"newest": None}
    verdict = newest["verdict"]
    return found | {
        "newest": newest,
        "time": when(newest["time"]),
        "signals": [_row(one) for one in verdict["signals"]],
        "rows": verdict["rows"],
        "few": verdict["rows"] < FEW_ROWS,
        "untested": [(SIGNALS[one], why) for one, why in verdict["untested"].items()],
        "histograms": [_histogram(one) for one in verdict["signals"] if len(one["shares"]) > 1],
        "chart": _chart(windows[-DRAWN:], newest["level"]),
    }


def _row(signal: dict[str, Any]) -> dict[str, Any]:
    psi = signal["statistic"] == "psi"
    return {
        "words": SIGNALS[signal["name"]],
        "statistic": "PSI" if psi else "MMD²",
        "value": rounded(signal["value"]),
        "p": rounded(signal["p"]),
        "adjusted": rounded(signal["adjusted"]),
        "against": signal["against"],
        "alarm": signal["alarm"],
    }


def _histogram(signal: dict[str, Any]) -> dict[str, Any]:
    """The cells that hold most, side by side."""
    cells = signal["shares"]
    ordered = signal["name"] not in {"topic", "language"}
    if not ordered:
        cells = sorted(cells, key=lambda one: -max(one[1], one[2]))
    most = max(max(one[1], one[2]) for one in cells) or 1.0
    return {
        "words": SIGNALS[signal["name"]],
        "against": signal["against"],
        "alarm": signal["alarm"],
        "cells": [
            {
                "label": label,
                "reference": share(reference),
                "window": share(live),
                "reference_bar": round(100 * reference / most, 1),
                "window_bar": round(100 * live / most, 1),
            }
            for label, reference, live in cells[:WIDEST]
        ],
        "left_out": max(0, len(cells) - WIDEST),
    }


def _chart(windows: list[dict[str, Any]], level: float) -> Markup:
    """How much speaks for a change, window by window."""
    names = [one for one in SIGNALS if any(_adjusted(window, one) for window in windows)]
    lines = [
        Line(
            SIGNALS[name],
            COLOURS[place],
            [
                (number, -math.log10(adjusted))
                for number, window in enumerate(windows, 1)
                if (adjusted := _adjusted(window, name))
            ],
        )
        for place, name in enumerate(names)
    ]
    border = [(0.0, -math.log10(level)), (float(len(windows)), -math.log10(level))]
    lines.append(Line("level of an alarm", "m-teacher", border, "train"))
    if len(windows) < 2:
        return Markup("")
    up = "log10 of 1 / (p-value after Holm); higher: less like the reference"
    return line_chart("Window by window", lines, "window", up)


def _adjusted(window: dict[str, Any], name: str) -> float | None:
    found = [one["adjusted"] for one in window["verdict"]["signals"] if one["name"] == name]
    return float(found[0]) if found else None


def _alarm(window: dict[str, Any]) -> dict[str, Any]:
    moved = [SIGNALS[one["name"]] for one in window["verdict"]["signals"] if one["alarm"]]
    dismissed = window["dismissed"]
    return {
        "id": window["id"],
        "time": when(window["time"]),
        "variant": window["variant"],
        "moved": ", ".join(moved),
        "alerted": window["alerted"] or "none",
        "state": f"marked as false, {when(dismissed)}" if dismissed else "stands",
    }
