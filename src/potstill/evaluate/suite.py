"""Outside benchmarks: EleutherAI's lm-evaluation-harness on a run's models, where it is installed.

In: a suite's name such as `lm-eval:arc_easy`, the models' folders. Out: the harness's own figures,
by model. Scores nothing itself; the harness, its tasks and their data are not Potstill's, and the
data comes from where the harness fetches it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.extras import check_installed, installed_version
from potstill.errors import InputError, UsageError

HARNESS = "lm-eval"


def parse_suite(text: str) -> str:
    """`lm-eval:TASK` -> TASK. Errors: UsageError for another harness, or no task."""
    harness, colon, task = text.partition(":")
    if harness != HARNESS or not colon or not task.strip():
        raise UsageError(
            f"{text!r} is no suite, and no file.",
            f"Write {HARNESS}:TASK, such as {HARNESS}:arc_easy, or name a file of questions.",
        )
    return task.strip()


def run_suite(
    task: str, models: Mapping[str, Path], *, limit: int | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Run one task of the harness on each model, on the processor.

    Returns `task`, `rows` (how many were asked; None where the harness does not say), `harness`
    (its version), `models`: name -> figure -> {"value", "stderr"}.
    limit: first rows of the task only. Errors: MissingExtraError without the harness, InputError
    for a task that it does not know or that has no figure.
    """
    check_installed("lm_eval", "The suite lm-eval")
    harness = importlib.import_module("lm_eval")
    found, rows = {}, None
    for name, folder in models.items():
        try:
            made = harness.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "dtype": dtype},
                tasks=[task],
                limit=limit,
                device="cpu",
                batch_size=1,
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"lm-eval cannot run the task {task}: {error}.",
                "The command `lm-eval ls tasks` lists the tasks.",
            ) from error
        results = dict(made["results"].get(task, {}))
        rows = results.pop("sample_len", limit)
        figures = _figures(results)
        if not figures:
            raise InputError(f"lm-eval gave no figure for the task {task}.")
        found[name] = figures
    return {
        "task": task,
        "rows": rows,
        "harness": installed_version("lm_eval") or "unknown",
        "models": found,
    }


def _figures(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The harness writes `acc,none` and `acc_stderr,none`: one entry a figure and filter."""
    found = {}
    for key, value in results.items():
        name, _, chosen = key.partition(",")
        if name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        spread = results.get(f"{name}_stderr,{chosen}")
        known = isinstance(spread, int | float) and math.isfinite(spread)
        shown = name if chosen in ("", "none") else f"{name} ({chosen})"
        found[shown] = {"value": float(value), "stderr": spread if known else None}
    return found
