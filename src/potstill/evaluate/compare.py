"""Several runs side by side: a leaderboard, what is best for its size or speed, regressions by row.

In: the reports of runs, and where there are any the lines of their predictions.jsonl. Out: one
dictionary, which `compare_page.py` shows. Measures nothing and starts no model.

Runs are compared pairwise on the rows that both have with the same gold answers; a difference is
called one only if its whole interval lies on one side of zero. The first run is the one that the
others are held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.scoring import paired_bootstrap
from potstill.errors import InputError
from potstill.evaluate import words
from potstill.evaluate.power import paired_power_of

STUDENT, TEACHER = "distilled", "teacher"
RANKED_BY = ("f1", "em", "rougeL", "chrf", "kl", "span_kl", "perplexity", "bits_per_byte")
BY_ROW = ("f1", "em", "rougeL", "chrf", "kl", "span_kl")
"""Scores that each stored prediction carries, one a row."""
REGRESSIONS = 20
FELL = 1e-9
"""A score that fell by less has not: it is rounding."""


@dataclass(frozen=True)
class Compared:
    """A run: its name, its report.json, its predictions (rows of predictions.jsonl)."""

    name: str
    report: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]] = ()


def compare(
    runs: Sequence[Compared],
    *,
    by: str = "f1",
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """`runs`, `by`, `entries` (the leaderboard), `fronts`, `pairs`, `notes`.

    by: the metric that ranks; one of `RANKED_BY`. Errors: InputError for fewer than two runs, two
    of one name, or a metric that no model has.
    """
    if len(runs) < 2:
        raise InputError("A comparison needs at least two runs.", "Name one more.")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError("Two runs of one name cannot be told apart.", "Rename one run's folder.")
    entries = _entries(runs)
    if by not in RANKED_BY or not any(by in entry["metrics"] for entry in entries):
        owned = [one for one in RANKED_BY if any(one in entry["metrics"] for entry in entries)]
        raise InputError(f"No model has the metric {by}.", f"Rank by one of {', '.join(owned)}.")
    lower = bool(words.MEASURES[by].lower_is_better)
    ranked = sorted(entries, key=lambda entry: _rank(entry, by, lower))
    pairs = [_pair(runs[0], other, seed, resamples, level) for other in runs[1:]]
    fronts = {
        field: _front(ranked, by, field, lower, small)
        for field, small in (("disk_bytes", True), ("tokens_per_second", False))
    }
    for entry in ranked:
        entry["on_front"] = [field for field, ids in fronts.items() if entry["id"] in ids]
    return {
        "runs": [_facts(run) for run in runs],
        "by": by,
        "level": level,
        "entries": ranked,
        "fronts": fronts,
        "pairs": pairs,
        "notes": _notes(runs, pairs),
    }


def _entries(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Teachers and students of all runs; a teacher that two runs share is there once."""
    found, teachers = [], set()
    for number, run in enumerate(runs):
        for name, model in run.report["models"].items():
            if name in ("undistilled", "finetuned", "uncorrected"):
                continue  # of use inside one run
            metrics = {
                metric: figure
                for metric, figure in (model.get("metrics") or {}).items()
                if metric in words.MEASURES
            }
            if name == TEACHER:
                same = (model.get("parameters"), *(f["value"] for f in metrics.values()))
                if same in teachers:
                    continue
                teachers.add(same)
            found.append(
                {
                    "id": f"{run.name}/{name}",
                    "run": run.name,
                    "number": number,
                    "model": name,
                    "parameters": model.get("parameters"),
                    "disk_bytes": words.disk_bytes(model),
                    "peak_memory_bytes": model.get("peak_memory_bytes"),
                    "tokens_per_second": model.get("tokens_per_second"),
                    "metrics": metrics,
                }
            )
    return found


def _rank(entry: Mapping[str, Any], by: str, lower: bool) -> tuple[bool, float, str]:
    figure = entry["metrics"].get(by)
    value = figure["value"] if figure else 0.0
    return (figure is None, value if lower else -value, entry["id"])


def _front(
    entries: Sequence[Mapping[str, Any]], by: str, field: str, lower: bool, small: bool
) -> list[str]:
    """Ids of the entries that no other beats in both: quality, and that field. Best field first."""
    known = [one for one in entries if one.get(field) is not None and by in one["metrics"]]

    def place(entry: Mapping[str, Any]) -> tuple[float, float]:
        value, cost = entry["metrics"][by]["value"], float(entry[field])
        return (cost if small else -cost, value if lower else -value)

    front: list[str] = []
    best = float("inf")
    for entry in sorted(known, key=lambda one: (*place(one), one["id"])):
        if place(entry)[1] < best:
            best = place(entry)[1]
            front.append(entry["id"])
    return front


def _pair(
    first: Compared, other: Compared, seed: int, resamples: int, level: float
) -> dict[str, Any]:
    """The other run's student minus the first's, on the rows that both have."""
    a, b = (_rows(run) for run in (other, first))
    both = sorted(name for name in a.keys() & b.keys() if a[name]["golds"] == b[name]["golds"])
    found: dict[str, Any] = {
        "run": other.name,
        "against": first.name,
        "rows": len(both),
        "rows_of_each": [len(b), len(a)],
        "differences": {},
        "power": {},
        "regressions": [],
    }
    for metric in BY_ROW:
        kept = [
            (float(a[name][metric]), float(b[name][metric]))
            for name in both
            if a[name].get(metric) is not None and b[name].get(metric) is not None
        ]
        if len(kept) < 2:
            continue
        left, right = zip(*kept, strict=True)
        made = paired_bootstrap(left, right, seed, resamples, level)
        found["differences"][metric] = {**made.as_dict(), "significant": made.excludes_zero}
        if metric in ("f1", "em"):
            found["power"][metric] = paired_power_of([x - y for x, y in kept], level)
    scored = [n for n in both if a[n].get("f1") is not None and b[n].get("f1") is not None]
    change = {name: float(a[name]["f1"]) - float(b[name]["f1"]) for name in scored}
    found["counts"] = {
        "better": sum(one > FELL for one in change.values()),
        "same": sum(abs(one) <= FELL for one in change.values()),
        "worse": sum(one < -FELL for one in change.values()),
    }
    worst = sorted((name for name in scored if change[name] < -FELL), key=lambda n: (change[n], n))
    found["regressions"] = [
        {
            "id": name,
            "kind": a[name].get("kind", "qa"),
            "question": a[name].get("question", ""),
            "golds": a[name]["golds"],
            "before": {"answer": b[name]["answer"], "f1": b[name]["f1"]},
            "after": {"answer": a[name]["answer"], "f1": a[name]["f1"]},
        }
        for name in worst[:REGRESSIONS]
    ]
    return found


def _rows(run: Compared) -> dict[str, Mapping[str, Any]]:
    return {row["id"]: row for row in run.predictions if row["model"] == STUDENT}


def _facts(run: Compared) -> dict[str, Any]:
    """What identifies a run: the stages whose results its figures are."""
    stages = run.report["stages"]
    return {
        "name": run.name,
        "teacher": str(run.report["recipe"].get("teacher", "")),
        "examples": run.report["examples"].get("evaluated"),
        "stages": {
            name: {part: stages[name].get(part, "") for part in ("key", "digest")}
            for name in ("curate", "evaluate", "export")
            if name in stages
        },
    }


def _notes(runs: Sequence[Compared], pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    apart = [one for one in pairs if one["rows"] < max(one["rows_of_each"])]
    for one in apart:
        notes.append(
            f"{one['run']} and {one['against']} have {one['rows']} test rows in common, of "
            f"{one['rows_of_each'][1]} and {one['rows_of_each'][0]}. Differences are of the common "
            "rows; the leaderboard's figures are each of its own rows and do not compare."
        )
    machines = {
        (run.report["machine"].get("processor"), run.report["machine"].get("cores")) for run in runs
    }
    if len(machines) > 1:
        notes.append("The runs were measured on different machines: their speeds do not compare.")
    teachers = {str(run.report["recipe"].get("teacher", "")) for run in runs}
    if len(teachers) > 1:
        notes.append("The runs have different teachers: KL and agreement are each to its own.")
    return notes
