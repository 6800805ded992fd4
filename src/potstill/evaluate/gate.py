"""Whether a candidate may replace the current student: the gate, from stored answers alone.

In: the lines of a predictions.jsonl that holds both students on the same rows, and which rows are
the target. Out: a verdict with its reasons, as plain values. Pure: starts no model, knows no files.

    kept     on the rows that the current student was measured on before, no metric is worse: a
             metric is worse if the whole paired interval of its difference is on the bad side
    target   on the held-out rows from feedback, the target metric is better: its whole paired
             interval is on the good side

Each row is scored on both students, and rows are resampled together (paired bootstrap,
`core/scoring.py`). An interval of very few rows promises more than it can keep: five rows that all
got better come by chance in one of sixteen cases. So with fewer rows than a sign test would need
(2 * 0.5^n <= 1 - level; six at 95%), nothing is claimed and the state is `unproven`, and so it is
where the interval holds zero, or where the old rows are fewer than that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from potstill.core.scoring import paired_bootstrap_ratio
from potstill.errors import InputError
from potstill.evaluate import words
from potstill.evaluate.power import rows_needed, smallest_seen

CURRENT, CANDIDATE = "undistilled", "distilled"
"""What the students are called in an improvement: the one that training began with, and what came
of it."""
METRICS: dict[str, str | None] = {
    "f1": None,
    "em": None,
    "bleu": None,
    "chrf": None,
    "rouge1": None,
    "rouge2": None,
    "rougeL": None,
    "grounded": None,
    "kl": "tokens",
    "kl_answer": "answer_tokens",
    "span_kl": "spans",
    "span_kl_answer": "spans_answer",
    "marked_kl": None,
}
"""Of each metric what a row counts by; None: every row alike."""


def fewest_rows(level: float) -> int:
    """Rows of which so many alike are no chance: the least n with 2 * 0.5^n <= 1 - level."""
    return max(2, math.ceil(math.log2(2 / (1 - level)) - 1e-9))


def gate(
    predictions: Iterable[Mapping[str, Any]],
    target: Iterable[str],
    *,
    metric: str = "f1",
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """`state` (passed, unproven, failed), `reasons`, `kept` and `target` (metric -> figures).

    `needed`: target rows that would tell, if they do not. `smallest_drop`: of the metric, that the
    old rows show four times of five. Each figure: `current`, `candidate`, `value` (their
    difference), `low`, `high`, `n`, `outcome` (better, worse or unclear). target: ids of the rows
    that should have become better. metric: the one that must, of `METRICS`. Errors: InputError for
    another one, or where the two students were not measured on the same rows.
    """
    check_metric(metric)
    current, candidate = _both(predictions)
    aimed = set(target)
    old = [name for name in current if name not in aimed]
    new = [name for name in current if name in aimed]
    kept = _figures(current, candidate, old, seed, resamples, level)
    better = _figures(current, candidate, new, seed, resamples, level)
    state, needed, reasons = _on_target(better.get(metric), metric, len(new), level)
    if len(old) < fewest_rows(level):
        state = "failed" if state == "failed" else "unproven"
        reasons.insert(0, f"{len(old)} old rows are too few to see that something got worse")
    worse = [name for name, one in kept.items() if one["outcome"] == "worse"]
    if worse:
        state = "failed"
        reasons = [f"{_said(name, kept[name])} on the {len(old)} old rows" for name in worse] + (
            reasons
        )
    return {
        "state": state,
        "reasons": reasons,
        "metric": metric,
        "level": level,
        "seed": seed,
        "resamples": resamples,
        "rows": {"kept": len(old), "target": len(new)},
        "needed": needed,
        "smallest_drop": _smallest_drop(kept.get(metric), level),
        "kept": kept,
        "target": better,
    }


def check_metric(metric: str) -> None:
    """Errors: InputError for a metric that the gate does not know."""
    if metric not in METRICS:
        raise InputError(f"There is no gate by {metric}.", f"Metrics: {', '.join(METRICS)}.")


def _both(
    predictions: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
    """Row id -> its line, of the current student and of the candidate."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {CURRENT: {}, CANDIDATE: {}}
    for line in predictions:
        if line["model"] in found:
            found[line["model"]][str(line["id"])] = line
    current, candidate = found[CURRENT], found[CANDIDATE]
    if not current or current.keys() != candidate.keys():
        raise InputError(
            f"{len(current)} rows of the current student and {len(candidate)} of the candidate "
            "are not the same rows.",
            "Run the improvement again: potstill improve RUN",
        )
    order = sorted(current)
    return {name: current[name] for name in order}, {name: candidate[name] for name in order}


def _figures(
    current: Mapping[str, Mapping[str, Any]],
    candidate: Mapping[str, Mapping[str, Any]],
    rows: Sequence[str],
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, dict[str, Any]]:
    """Every metric that at least two of the rows have on both sides."""
    found = {}
    for metric, weight in METRICS.items():
        both = [
            (float(candidate[name][metric]), float(current[name][metric]),
             float(current[name][weight]) if weight else 1.0)
            for name in rows
            if candidate[name].get(metric) is not None and current[name].get(metric) is not None
        ]  # fmt: skip
        if len(both) < 2 or not sum(share for *_, share in both):
            continue
        shares = [share for *_, share in both]
        new = [value * share for value, _, share in both]
        old = [value * share for _, value, share in both]
        made = paired_bootstrap_ratio(new, old, shares, seed, resamples, level)
        figure = made.as_dict() | {
            "current": sum(old) / sum(shares),
            "candidate": sum(new) / sum(shares),
            "spread": statistics.stdev(after - before for after, before, _ in both),
            "significant": made.excludes_zero,
        }
        found[metric] = figure | {"outcome": words.outcome(metric, figure)}
    return found


def _on_target(
    figure: Mapping[str, Any] | None, metric: str, rows: int, level: float
) -> tuple[str, int | None, list[str]]:
    """State of the target alone, how many rows it would take to tell, and why."""
    title = words.MEASURES[metric].title
    if figure is None:
        return "unproven", None, [f"{rows} rows from feedback have no {title} to compare by"]
    if figure["outcome"] == "worse":
        return "failed", None, [f"{_said(metric, figure)} on the {rows} rows from feedback"]
    least = fewest_rows(level)
    if figure["outcome"] == "better" and figure["n"] >= least:
        return "passed", None, [f"{_said(metric, figure)} on the {rows} rows from feedback"]
    needed = rows_needed(figure["spread"], figure["value"], level)
    if figure["n"] < least:
        needed = max(least, needed or least)
    more = f"; about {needed} would tell, if it stays so" if needed else ""
    why = f"{figure['n']} rows from feedback cannot tell whether {title} is better"
    return "unproven", needed, [f"{why} ({_range(metric, figure)}){more}"]


def _smallest_drop(figure: Mapping[str, Any] | None, level: float) -> float | None:
    if figure is None or not figure["spread"]:
        return None
    return smallest_seen(figure["spread"], figure["n"], level)


def _said(metric: str, figure: Mapping[str, Any]) -> str:
    return f"{words.MEASURES[metric].title} is {figure['outcome']} ({_range(metric, figure)})"


def _range(metric: str, figure: Mapping[str, Any]) -> str:
    value, low, high = (words.figure(metric, figure[name]) for name in ("value", "low", "high"))
    return f"{value}, {low} to {high}"
