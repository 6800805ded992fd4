"""report.json as one self-contained page: no scripts, no network, light, dark and print.

In: the report's dictionary. Out: HTML text. Knows nothing of files beyond its own template.
All texts that come from documents, models or recipes are escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from potstill.core.charts import Dot, Line, line_chart, scatter
from potstill.core.pages import environment
from potstill.evaluate import details, words

SHAPES = {
    "teacher": "circle",
    "uncorrected": "diamond",
    "undistilled": "diamond",
    "finetuned": "square",
    "distilled": "circle",
    "gguf-f16": "up",
    "gguf-q4_k_m": "down",
    "onnx-fp32": "up",
    "onnx-int8": "down",
}
Row = dict[str, Any]


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            metrics=words.headlines(report),
            details=_detail_rows(report),
            parts=details.parts(report),
            models=_model_rows(report),
            differences=_difference_rows(report),
            curves=_curves(report["history"]),
            trade_offs=trade_offs(report),
            spans=words.marks_spans(report),
            data=_data_rows(report["data"]),
            stages=_stage_rows(report["stages"]),
            parity=_table(report["parity"]),
            settings=_flat(report["recipe"]),
        )
    )


def templates() -> Environment:
    """The template engine for this stage's pages."""
    made = environment(Path(__file__).parent / "templates")
    made.globals.update(words=words, style=style)
    return made


def style(model: str) -> str:
    """CSS class that colours a model; unknown ones share a neutral colour."""
    return f"m-{model}" if model in SHAPES else "m-other"


def _detail_rows(report: Mapping[str, Any]) -> list[Row]:
    """One row a metric that is not among the first, one cell a model."""
    shown = words.headlines(report)
    rows = []
    for metric, measure in words.MEASURES.items():
        found = [(model.get("metrics") or {}).get(metric) for model in report["models"].values()]
        if metric not in shown and any(found):
            cells = [details.cell(metric, one) for one in found]
            rows.append({"title": measure.title, "unit": measure.unit, "cells": cells})
    return rows


def _model_rows(report: Mapping[str, Any]) -> list[Row]:
    spans = words.marks_spans(report)
    return [
        {
            "key": name,
            "name": words.model_name(name),
            "parameters": words.millions(model.get("parameters")),
            "disk": words.size(words.disk_bytes(model)),
            "speed": words.number(model.get(words.speed_field(report))),
            "first": words.duration(model.get("answer_s" if spans else "time_to_first_token_s")),
            "memory": words.size(model.get("peak_memory_bytes")),
            "metrics": {
                metric: details.cell(metric, figure)
                for metric, figure in (model.get("metrics") or {}).items()
                if metric in words.MEASURES
            },
        }
        for name, model in report["models"].items()
    ]


def _difference_rows(report: Mapping[str, Any]) -> list[Row]:
    rows = []
    for pair, metrics in report["differences"].items():
        a, _, b = pair.partition("_minus_")
        for metric, figure in metrics.items():
            if metric not in words.MEASURES:
                continue
            outcome = words.outcome(metric, figure)
            verdict = {"unclear": "not told apart", "different": "they differ"}.get(
                outcome, f"{words.model_name(a if outcome == 'better' else b)} better"
            )
            rows.append(
                {
                    "pair": f"{words.model_name(a)} \N{MINUS SIGN} {words.model_name(b)}",
                    "metric": words.MEASURES[metric].title,
                    "unit": words.MEASURES[metric].unit,
                    "value": words.figure(metric, figure["value"]),
                    "low": words.figure(metric, figure["low"]),
                    "high": words.figure(metric, figure["high"]),
                    "significant": figure["significant"],
                    "verdict": verdict,
                }
            )
    return rows


def _points(rows: Any, field: str) -> list[tuple[float, float]]:
    """(tokens, field) of the rows that have both; steps stand in for missing token counts."""
    found = []
    for row in rows or ():
        x = row.get("tokens", row.get("step"))
        if isinstance(x, int | float) and isinstance(row.get(field), int | float):
            found.append((float(x), float(row[field])))
    return found


def _curves(history: Mapping[str, Any]) -> list[Markup]:
    """KL of both students while they train, then each one's own loss."""
    charts = []
    for field, title, unit in (
        ("kl", "KL to the teacher, held-out", "nats a token"),
        ("spans", "Span KL to the teacher, held-out", "nats a span"),
        ("kd", "Divergence from the teacher, held-out", "nats, at the temperature"),
    ):
        lines = [
            Line(words.model_name(name), style(name), _points(part.get("validation"), field))
            for name, part in history.items()
        ]
        charts.append(line_chart(title, lines, "tokens trained", unit))
    for name, part in history.items():
        lines = [
            Line("training", style(name), _points(part.get("steps"), "loss"), "train"),
            Line("validation", style(name), _points(part.get("validation"), "loss")),
        ]
        title = f"{words.model_name(name)}: loss"
        charts.append(line_chart(title, lines, "tokens trained", "its own objective"))
    return [chart for chart in charts if chart]


def trade_offs(report: Mapping[str, Any]) -> list[Markup]:
    """KL and F1, each against size on disk and against speed."""
    models = report["models"]
    speed = words.speed_field(report)
    charts = []
    for metric, y_label in (
        ("kl", "nats a token, lower is better"),
        ("span_kl", "nats a span, lower is better"),
        ("marked_kl", "nats, lower is better"),
        ("f1", "%, higher is better"),
    ):
        for field, title, x_label in (
            ("disk", "size", "MB on disk"),
            (speed, "speed", speed.split("_")[0] + " a second"),
        ):
            dots = []
            for name, model in models.items():
                figure = (model.get("metrics") or {}).get(metric)
                x = words.disk_bytes(model) if field == "disk" else model.get(field)
                if figure is None or x is None:
                    continue
                x = float(x) / (1e6 if field == "disk" else 1.0)
                scale = words.MEASURES[metric].scale
                value, low, high = (scale * figure[part] for part in ("value", "low", "high"))
                label, shape = words.model_name(name), SHAPES.get(name, "square")
                dots.append(Dot(label, style(name), shape, x, value, low, high))
            heading = f"{words.MEASURES[metric].title} against {title}"
            charts.append(scatter(heading, dots, x_label, y_label))
    return [chart for chart in charts if chart]


def _data_rows(data: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[Row]:
    """Per stage: bars of what was kept and of what was rejected, on the stage's own scale."""
    stages = []
    for stage, counts in data.items():
        bars = [("kept", what, number) for what, number in counts["kept"].items()]
        bars += [("rejected", reason, number) for reason, number in counts["rejected"].items()]
        largest = max([number for _, _, number in bars], default=0) or 1
        stages.append(
            {
                "stage": stage,
                "rejected": sum(counts["rejected"].values()),
                "bars": [
                    {
                        "kind": kind,
                        "label": label.replace("_", " "),
                        "count": words.count(number),
                        "share": round(100 * number / largest, 2),
                    }
                    for kind, label, number in bars
                ],
            }
        )
    return stages


def _stage_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    longest = max([float(stage["seconds"]) for stage in stages.values()], default=0.0) or 1.0
    return [
        {
            "stage": name,
            "seconds": words.duration(float(stage["seconds"])),
            "memory": words.size(stage.get("peak_memory_bytes")),
            "reused": bool(stage.get("reused")),
            "share": round(100 * float(stage["seconds"]) / longest, 2),
        }
        for name, stage in stages.items()
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of plain values as columns and texts, in the order in which the keys first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [[_text(row.get(column)) for column in columns] for row in rows],
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return words.number(value)
    if isinstance(value, int):
        return words.count(value)
    return words.MISSING if value is None else str(value)


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """A nested recipe as `section.field` -> text, so that it can be repeated with --set."""
    if isinstance(value, Mapping) and value:
        return [
            pair for key, part in value.items() for pair in _flat(part, f"{path}.{key}".lstrip("."))
        ]
    if isinstance(value, list | tuple):
        return [(path, ", ".join(str(part) for part in value))]
    return [(path, "" if value is None else str(value))]
