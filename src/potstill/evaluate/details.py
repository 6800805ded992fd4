"""The report's tables beyond the first: by kind, by position, rows needed, contamination, sources.

In: the report's dictionary. Out: rows of short texts for the page, Markdown and CSV alike. Knows
nothing of HTML or of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.evaluate import words

BY_KIND = ("kl", "span_kl", "marked_kl", "f1", "em", "refusal_rate", "grounded")
TEXTS = {"Kind", "Model", "Pair", "Metric", "Test row", "Training row", "Figures", "Stage"} | {
    "Answer token", "Key", "Digest"
}  # fmt: skip
"""Columns of words: they begin at the left."""
Table = dict[str, Any]


def cell(metric: str, figure: Mapping[str, Any] | None) -> dict[str, Any]:
    """A figure and its interval as texts; `spread`: whether there is an interval to show."""
    if figure is None:
        return {"value": words.MISSING, "low": "", "high": "", "spread": False}
    return {
        "value": words.figure(metric, figure["value"]),
        "low": words.figure(metric, figure["low"]),
        "high": words.figure(metric, figure["high"]),
        "spread": figure["low"] != figure["high"],
    }


def parts(report: Mapping[str, Any]) -> list[Table]:
    """`{"id", "title", "why", "columns", "rows", "texts"}` of each table with figures."""
    tables = (_speed, _answering, _kinds, _positions, _power, _clean, _sources)
    made = [table(report) for table in tables]
    return [one for one in made if one["rows"]]


def _table(name: str, title: str, why: str, columns: list[str], rows: list[list[str]]) -> Table:
    texts = [one for one in columns if one in TEXTS]
    return {
        "id": name,
        "title": title,
        "why": why,
        "columns": columns,
        "rows": rows,
        "texts": texts,
    }


def _speed(report: Mapping[str, Any]) -> Table:
    """Latency, and what several requests at once do."""
    models = {name: model for name, model in report["models"].items() if model.get("token_p50_s")}
    counts = sorted(
        {int(count) for one in models.values() for count in one["parallel_tokens_per_second"]}
    )
    rows = [
        [
            words.model_name(name),
            *(words.duration(one[field]) for field in ("load_s", "token_p50_s", "token_p95_s")),
            words.number(one["tokens_per_second"]),
            *(words.number(one["parallel_tokens_per_second"].get(str(count))) for count in counts),
        ]
        for name, one in models.items()
    ]
    why = (
        "Half, and 95%, of the tokens after the first came sooner than that. Several requests are "
        "answered in one batch: tokens a second of all of them, once their prompts are read."
    )
    columns = ["Model", "Load", "A token, half", "A token, 95%", "Tokens/s, one request"]
    columns += [f"{count} at once" for count in counts]
    return _table("speed", "Latency, and several requests at once", why, columns, rows)


def _answering(report: Mapping[str, Any]) -> Table:
    """Latency of models that mark answers, and of their teacher."""
    rows = [
        [
            words.model_name(name),
            *(words.duration(model.get(one)) for one in ("load_s", "answer_s", "answer_p95_s")),
            words.number(model["questions_per_second"]),
        ]
        for name, model in report["models"].items()
        if model.get("questions_per_second")
    ]
    why = "One question at a time; half, and 95%, of the answers came sooner than that."
    columns = ["Model", "Load", "An answer, half", "An answer, 95%", "Questions/s"]
    return _table("speed", "Latency", why, columns, rows)


def _kinds(report: Mapping[str, Any]) -> Table:
    """Figures of each model on each kind of row."""
    models = {name: model.get("by_kind") or {} for name, model in report["models"].items()}
    owned = {
        metric for kinds in models.values() for found in kinds.values() for metric in found
    } & set(BY_KIND)
    shown = [one for one in BY_KIND if one in owned]
    rows = [
        [
            kind.replace("_", " "),
            words.model_name(name),
            words.count(max(int(one["n"]) for one in found.values())),
            *(with_range(metric, found.get(metric)) for metric in shown),
        ]
        for kind in sorted({kind for kinds in models.values() for kind in kinds})
        for name, kinds in models.items()
        if (found := kinds.get(kind))
    ]
    why = "The same figures on each kind of test row alone."
    titles = [words.MEASURES[metric].title for metric in shown]
    return _table("kinds", "By kind of row", why, ["Kind", "Model", "Rows", *titles], rows)


def _positions(report: Mapping[str, Any]) -> Table:
    """One row a bin of positions, one column a model; the teacher's distance to itself is 0."""
    models = {
        name: {one["first"]: one for one in model["by_position"]}
        for name, model in report["models"].items()
        if name != "teacher" and model.get("by_position")
    }
    bins = {first: one for found in models.values() for first, one in found.items()}
    rows = [
        [
            _span(one["first"], one["last"]),
            words.count(one["tokens"]),
            *(
                f"{words.figure('kl', found[first]['kl'])} "
                f"({words.figure('agreement', found[first]['agreement'])}%)"
                if first in found
                else words.MISSING
                for found in models.values()
            ),
        ]
        for first, one in sorted(bins.items())
    ]
    why = (
        "How near a model is to its teacher at the answer's first token, its second, and so on: "
        "KL in nats and, in brackets or below it, top-1 agreement."
    )
    columns = ["Answer token", "Tokens", *map(words.model_name, models)]
    return _table("positions", "By position in the answer", why, columns, rows)


def _span(first: int, last: int | None) -> str:
    return f"{first}" if first == last else f"{first} on" if last is None else f"{first} to {last}"


def _power(report: Mapping[str, Any]) -> Table:
    rows = []
    for pair, metrics in (report.get("power") or {}).items():
        for metric, one in metrics.items():
            needed = one["rows"]
            rows.append(
                [
                    pair_name(pair),
                    words.MEASURES[metric].title,
                    words.count(one["n"]),
                    words.MISSING
                    if one["smallest"] is None
                    else f"{100 * one['smallest']:.1f} points",
                    *(words.count(needed[name]) for name in ("0.05", "0.02", "0.01")),
                    words.count(needed["measured"]),
                ]
            )
    why = (
        "How large a true difference must be for these test rows to show it four times of five, "
        "and how many rows would show a smaller one. Rows in pairs, normal approximation."
    )
    columns = [
        "Pair", "Metric", "Rows here", "Smallest seen", "Rows for 5 points", "2 points", "1 point",
        "Rows for the measured one",
    ]  # fmt: skip
    return _table("power", "How many rows it takes", why, columns, rows)


def _clean(report: Mapping[str, Any]) -> Table:
    """Test rows that training rows have much of, and the figures without them."""
    audit = report.get("contamination") or {}
    if not audit:
        return _table("contamination", "", "", [], [])
    why = (
        f"{audit['seen']} of {audit['rows']} test rows have at least {100 * audit['high']:.0f}% of "
        f"their {audit['words']}-word pieces, or of their question's, in a training row; "
        f"{audit['untouched']} have none. On average training rows have "
        f"{100 * audit['mean_text']:.1f}% of a test row's pieces"
        + (
            "."
            if audit["mean_asked"] is None
            else f" and {100 * audit['mean_asked']:.1f}% of its question's."
        )
    )
    rows = [
        [
            words.model_name(name),
            *(
                with_range(metric, some.get(metric))
                for some in (report["models"][name]["metrics"], found)
                for metric in ("f1", "em")
            ),
        ]
        for name, found in (audit.get("without") or {}).items()
        if name in report["models"]
    ]
    columns = ["Model", "F1, all rows", "EM, all rows", "F1, without them", "EM, without them"]
    if not rows:
        columns = ["Test row", "Of its question, %", "Of its text, %", "Training row"]
        rows = [
            [
                one["id"],
                words.MISSING if one["asked"] is None else f"{100 * one['asked']:.0f}",
                f"{100 * one['text']:.0f}",
                one["nearest"],
            ]
            for one in audit["most"]
        ] or [["none", words.MISSING, words.MISSING, words.MISSING]]
    return _table("contamination", "Test rows seen in training", why, columns, rows)


def _sources(report: Mapping[str, Any]) -> Table:
    """Which stored result each group of figures comes from."""
    said = {
        "evaluate": "quality, fidelity, speed of the PyTorch models",
        "export": "the exported files' figures and parity",
        "distill": "training curves",
        "curate": "the test rows",
    }
    rows = [
        [said[name], name, str(stage["key"])[:16], str(stage.get("digest", ""))[:16]]
        for name, stage in report["stages"].items()
        if name in said and stage.get("key")
    ]
    why = (
        "The key is the hash of a stage's config and inputs, the digest that of its stored files. "
        "The same key gives the same figures of quality; potstill verify rehashes the files."
    )
    return _table(
        "sources", "Where each figure comes from", why, ["Figures", "Stage", "Key", "Digest"], rows
    )


def pair_name(pair: str) -> str:
    """`a_minus_b` as a person writes it."""
    a, _, b = pair.partition("_minus_")
    return f"{words.model_name(a)} {words.MINUS} {words.model_name(b)}"


def with_range(metric: str, figure: Mapping[str, Any] | None) -> str:
    """A figure and its interval in one text."""
    return in_one(cell(metric, figure))


def in_one(made: Mapping[str, Any]) -> str:
    """A cell's value and interval in one text."""
    value = str(made["value"])
    return f"{value} ({made['low']} to {made['high']})" if made["spread"] else value
