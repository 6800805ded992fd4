"""report.json as Markdown, as CSV, and as the figures of a Hugging Face model card.

In: the report's dictionary. Out: texts and plain values. Measures nothing and knows no files.

The CSV has one figure a line with its interval, its unit and the key and digest of the stage that
measured it, so that a line that was copied somewhere can still be traced to its config.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.evaluate import details, words

CSV_COLUMNS = (
    "model", "metric", "value", "low", "high", "n", "significant", "unit", "stage", "key", "digest",
)  # fmt: skip
SIZES = {
    "parameters": "parameters",
    "disk_bytes": "bytes",
    "reference_disk_bytes": "bytes",
    "peak_memory_bytes": "bytes",
    "tokens_per_second": "tokens a second",
    "time_to_first_token_s": "seconds",
    "questions_per_second": "questions a second",
    "answer_s": "seconds",
}
CARD = ("em", "f1", "rougeL", "chrf", "kl", "agreement", "perplexity", "span_kl", "bits_per_byte")
"""The metrics that a model card lists."""


def csv_text(report: Mapping[str, Any]) -> str:
    """All figures, one a line; values unrounded."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, model in report["models"].items():
        source = _source(report, name)
        for field, scale in SIZES.items():
            if model.get(field) is not None:
                line = {"model": name, "metric": field, "value": model[field], "unit": scale}
                writer.writerow(line | source)
        for metric, figure in (model.get("metrics") or {}).items():
            writer.writerow({"model": name, "metric": metric, **figure, **unit(metric), **source})
    for pair, metrics in report["differences"].items():
        source = _source(report, pair)
        for metric, figure in metrics.items():
            writer.writerow({"model": pair, "metric": metric, **figure, **unit(metric), **source})
    return file.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
    """The report without its pictures, as GitHub's Markdown."""
    lines = [f"# {_cell(report['run'])}", ""]
    for sentence in report["verdict"]["made"]:
        lines.append(f"- {sentence}")
    for claim in [*report["verdict"]["claims"], *report["verdict"]["open"]]:
        lines.append(f"- {claim['text']}")
        lines += [f"  - {figure}" for figure in claim["figures"]]
    shown = words.headlines(report)
    rest = [name for name in words.MEASURES if name not in shown]
    lines += ["", "## Models", "", *_models(report, shown, sizes=True)]
    lines += ["", "## Every other figure", "", *_models(report, rest, sizes=False)]
    for part in details.parts(report):
        lines += ["", f"## {part['title']}", "", part["why"], ""]
        lines += table(part["columns"], part["rows"], part["texts"])
    lines += ["", "## Notes", "", *(f"- {_cell(note)}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str] = ("",)
) -> list[str]:
    """A Markdown table; columns of numbers are set to the right."""
    rule = [":---" if column in texts else "---:" for column in columns]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (columns, rule, *rows)]


def model_index(report: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """`model-index` of a Hugging Face model card for one of the report's models; empty if it has
    no figures.

    As the hub's metadata specification has it: one result, its data set the run's own test rows.
    """
    found = (report["models"].get(model) or {}).get("metrics") or {}
    metrics = [
        {
            "type": {"em": "exact_match", "rougeL": "rouge"}.get(name, name),
            "name": words.MEASURES[name].title,
            "value": found[name]["value"] * words.MEASURES[name].scale,
            "args": {
                "low": found[name]["low"] * words.MEASURES[name].scale,
                "high": found[name]["high"] * words.MEASURES[name].scale,
                "n": found[name]["n"],
            },
        }
        for name in CARD
        if name in found
    ]
    if not metrics:
        return []
    curate = report["stages"].get("curate", {})
    data = {"type": "potstill", "name": f"{report['run']}, held-out rows", "split": "test"}
    if curate.get("digest"):
        data["revision"] = str(curate["digest"])
    task = {"type": "question-answering" if words.marks_spans(report) else "text-generation"}
    return [
        {
            "name": str(report["run"]),
            "results": [{"task": task, "dataset": data, "metrics": metrics}],
        }
    ]


def _models(report: Mapping[str, Any], metrics: Sequence[str], *, sizes: bool) -> list[str]:
    """One row a metric and one column a model: many metrics fit no page's width otherwise."""
    models, speed = report["models"], words.speed_field(report)
    rows = []
    if sizes:
        rows = [
            ["Parameters", *(words.millions(one.get("parameters")) for one in models.values())],
            ["Disk", *(words.size(words.disk_bytes(one)) for one in models.values())],
            ["Peak memory", *(words.size(one.get("peak_memory_bytes")) for one in models.values())],
            [
                f"{speed.split('_')[0].capitalize()} a second",
                *(words.number(m.get(speed)) for m in models.values()),
            ],
        ]
    for metric in metrics:
        found = [(model.get("metrics") or {}).get(metric) for model in models.values()]
        if any(found):
            measure = words.MEASURES[metric]
            title = f"{measure.title}, {measure.unit}" if measure.unit else measure.title
            rows.append([title, *(details.with_range(metric, one) for one in found)])
    return table(["", *map(words.model_name, models)], rows)


def _source(report: Mapping[str, Any], model: str) -> dict[str, str]:
    """Which stage measured a model, its key and its digest."""
    stage = "export" if model in report["exported"] else "evaluate"
    record = report["stages"].get(stage, {})
    return {"stage": stage, "key": record.get("key", ""), "digest": record.get("digest", "")}


def unit(metric: str) -> dict[str, str]:
    """`{"unit": …}` of the unrounded value: shares stay shares."""
    measure = words.MEASURES.get(metric)
    if measure is None:
        return {}
    return {"unit": "share" if measure.scale == 100 else measure.unit}


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
