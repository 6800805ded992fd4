"""A comparison of runs as one HTML page, as Markdown and as CSV.

In: what `compare.py` found. Out: texts. Measures nothing; the page loads nothing and runs nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from potstill.core.charts import Dot, scatter
from potstill.evaluate import details, formats, words
from potstill.evaluate.page import templates

SHAPES = ("circle", "square", "diamond", "up", "down")
COLOURS = 6
METRICS = ("f1", "em", "kl", "span_kl", "agreement", "perplexity", "bits_per_byte")
CSV_COLUMNS = (
    "rank", "run", "model", "metric", "value", "low", "high", "n", "unit", "key", "digest",
)  # fmt: skip
TEXTS = ("", "Best of its", "Metric", "What it shows")
Row = dict[str, Any]


def render(found: Mapping[str, Any]) -> str:
    """The whole page."""
    return (
        templates()
        .get_template("compare.html.j2")
        .render(
            found=found,
            measure=words.MEASURES[found["by"]],
            board=board(found),
            charts=_charts(found),
            pairs=[_pair(one) for one in found["pairs"]],
            level=f"{100 * found['level']:g}",
        )
    )


def board(found: Mapping[str, Any]) -> dict[str, Any]:
    """The leaderboard as columns and rows of texts; `style` colours a row's run."""
    shown = [m for m in METRICS if any(m in entry["metrics"] for entry in found["entries"])]
    shown.sort(key=lambda metric: metric != found["by"])
    if found["by"] not in shown:
        shown.insert(0, found["by"])
    rows = [
        {
            "style": style(entry),
            "rank": str(rank),
            "name": f"{entry['run']} · {words.model_name(entry['model'])}",
            "cells": [details.cell(metric, entry["metrics"].get(metric)) for metric in shown],
            "parameters": words.millions(entry["parameters"]),
            "disk": words.size(entry["disk_bytes"]),
            "speed": words.number(entry["tokens_per_second"]),
            "memory": words.size(entry["peak_memory_bytes"]),
            "front": ", ".join(
                {"disk_bytes": "size", "tokens_per_second": "speed"}[field]
                for field in entry["on_front"]
            ),
        }
        for rank, entry in enumerate(found["entries"], 1)
    ]
    return {"measures": [words.MEASURES[metric] for metric in shown], "rows": rows}


def board_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the leaderboard, for the terminal."""
    made = board(found)
    header = [
        "run and model",
        *(one.title for one in made["measures"]),
        "disk",
        "tok/s",
        "best of its",
    ]
    rows = [
        [
            f"{row['rank']} {row['name']}",
            *(cell["value"] for cell in row["cells"]),
            row["disk"],
            row["speed"],
            row["front"],
        ]
        for row in made["rows"]
    ]
    return header, rows


def style(entry: Mapping[str, Any]) -> str:
    """CSS class of the entry's run."""
    return f"r-{entry['number'] % COLOURS}"


def _charts(found: Mapping[str, Any]) -> list[Markup]:
    """Quality against size and against speed, with a line through what nothing beats in both."""
    measure = words.MEASURES[found["by"]]
    entries = {entry["id"]: entry for entry in found["entries"]}
    better = "lower" if measure.lower_is_better else "higher"
    y_label = ", ".join(part for part in (measure.unit, f"{better} is better") if part)
    charts = []
    for field, title, x_label, unit in (
        ("disk_bytes", "size", "MB on disk", 1e6),
        ("tokens_per_second", "speed", "tokens a second", 1.0),
    ):

        def point(
            entry: Mapping[str, Any], field: str = field, unit: float = unit
        ) -> tuple[float, float]:
            return entry[field] / unit, measure.scale * entry["metrics"][found["by"]]["value"]

        dots = []
        for rank, entry in enumerate(entries.values(), 1):
            figure = entry["metrics"].get(found["by"])
            if figure is None or entry[field] is None:
                continue
            low, high = (measure.scale * figure[part] for part in ("low", "high"))
            shape = SHAPES[entry["number"] % len(SHAPES)]
            dots.append(Dot(str(rank), style(entry), shape, *point(entry), low, high))
        front = sorted(point(entries[name]) for name in found["fronts"][field])
        charts.append(scatter(f"{measure.title} against {title}", dots, x_label, y_label, front))
    return [chart for chart in charts if chart]


def _pair(pair: Mapping[str, Any]) -> Row:
    """One run against the first, in texts."""
    rows = []
    for metric, one in pair["differences"].items():
        outcome = words.outcome(metric, one)
        said = {
            "better": f"{pair['run']} is better",
            "worse": f"{pair['against']} is better",
            "different": "they differ",
            "unclear": "not told apart",
        }[outcome]
        measure = words.MEASURES[metric]
        rows.append(
            [
                f"{measure.title}, {measure.unit}" if measure.unit else measure.title,
                words.figure(metric, one["value"]),
                f"{words.figure(metric, one['low'])} to {words.figure(metric, one['high'])}",
                words.count(one["n"]),
                said,
            ]
        )
    counts = pair["counts"]
    power = pair["power"].get("f1")
    seen = (
        f" These rows show a true difference in F1 of {100 * power['smallest']:.1f} points four "
        "times of five."
        if power and power["smallest"] is not None
        else ""
    )
    return {
        "title": f"{pair['run']} {words.MINUS} {pair['against']}",
        "why": f"On {words.count(pair['rows'])} common test rows: {counts['better']} have a higher "
        f"F1, {counts['same']} the same, {counts['worse']} a lower one.{seen}",
        "columns": ["Metric", "Difference", "Interval", "Rows", "What it shows"],
        "rows": rows,
        "texts": ["Metric", "What it shows"],
        "regressions": [
            {
                "id": one["id"],
                "question": " ".join(one["question"].split()),
                "kind": one["kind"].replace("_", " "),
                "gold": " / ".join(one["golds"]) or "(none)",
                "before": _said(one["before"]),
                "after": _said(one["after"]),
                "f1": [words.figure("f1", one[side]["f1"]) for side in ("before", "after")],
            }
            for one in pair["regressions"]
        ],
        "names": [pair["against"], pair["run"]],
        "worse": counts["worse"],
    }


def _said(side: Mapping[str, Any]) -> str:
    return " ".join(str(side["answer"]).split()) or "(nothing)"


def markdown(found: Mapping[str, Any]) -> str:
    """The comparison without its pictures."""
    made = board(found)
    titles = [f"{one.title} {one.unit}".strip() for one in made["measures"]]
    columns = ["", *titles, "Parameters", "Disk", "Tokens/s", "Memory", "Best of its"]
    rows = [
        [
            f"{row['rank']}. {row['name']}",
            *(details.in_one(cell) for cell in row["cells"]),
            row["parameters"], row["disk"], row["speed"], row["memory"], row["front"],
        ]
        for row in made["rows"]
    ]  # fmt: skip
    lines = ["# Runs compared", "", f"Ranked by {words.MEASURES[found['by']].title}.", ""]
    lines += formats.table(columns, rows, TEXTS)
    for pair in map(_pair, found["pairs"]):
        lines += ["", f"## {pair['title']}", "", pair["why"], ""]
        lines += formats.table(pair["columns"], pair["rows"], TEXTS)
        if pair["regressions"]:
            lines += [
                "",
                f"Rows that lost most, {len(pair['regressions'])} of {pair['worse']}:",
                "",
            ]
            lines += formats.table(
                ["Row", "Question", "Gold", *pair["names"], "F1 before", "F1 after"],
                [
                    [
                        one["id"],
                        one["question"],
                        one["gold"],
                        one["before"],
                        one["after"],
                        *one["f1"],
                    ]
                    for one in pair["regressions"]
                ],
                ("Row", "Question", "Gold", *pair["names"]),
            )
    if found["notes"]:
        lines += ["", *(f"- {note}" for note in found["notes"])]
    return "\n".join(lines) + "\n"


def csv_text(found: Mapping[str, Any]) -> str:
    """The leaderboard, one figure a line, unrounded, with the key and digest of its stage."""
    runs = {run["name"]: run["stages"] for run in found["runs"]}
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for rank, entry in enumerate(found["entries"], 1):
        exported = entry["model"] not in ("teacher", "distilled")
        source = runs[entry["run"]].get("export" if exported else "evaluate", {})
        who = {"rank": rank, "run": entry["run"], "model": entry["model"], **source}
        for metric, figure in entry["metrics"].items():
            writer.writerow({**who, "metric": metric, **figure, **formats.unit(metric)})
        for field, unit in formats.SIZES.items():
            if entry.get(field) is not None:
                writer.writerow({**who, "metric": field, "value": entry[field], "unit": unit})
    return file.getvalue()
