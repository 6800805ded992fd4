"""Home: the runs of the project with their state and last figures, storage, other projects, and how
to begin.

In: a studio. Out: the first page. Reads only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from potstill.core import machine
from potstill.evaluate import words
from potstill.pipeline import PIPELINE, store_of
from potstill.recipe import builtin_recipes
from potstill.studio.pages import page
from potstill.studio.projects import others
from potstill.studio.runs import RunView, all_runs
from potstill.studio.session import Studio


def routes(studio: Studio) -> APIRouter:
    """The routes of the first page."""
    router = APIRouter()

    @router.get("/")
    def home(request: Request) -> Response:
        runs = [_row(one) for one in all_runs(studio)]
        return page(
            request,
            studio,
            "home.html.j2",
            title="Runs",
            here="runs",
            runs=runs,
            storage=storage(studio.project),
            others=others(studio),
            beside=str(studio.project.parent),
            recipes=list(builtin_recipes()),
        )

    return router


def _row(view: RunView) -> dict[str, Any]:
    recipe = view.recipe
    return {
        "view": view,
        "description": str(recipe.get("description", "")),
        "teacher": str(recipe.get("teacher", "")),
        "figures": headline(view.report),
        "when": view.diary.last,
        "stage": next(
            (one.name for one in view.diary.stages.values() if one.state == "running"), ""
        ),
    }


def headline(report: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The few figures that a run is known by: of the distilled student, as (name, value)."""
    model = (report or {}).get("models", {}).get("distilled")
    if not report or not model:
        return []
    metrics = model.get("metrics") or {}
    found = [
        (words.MEASURES[name].title, _with_unit(name, metrics[name].get("value")))
        for name in words.headlines(report)
        if name in metrics and name in ("f1", "kl", "span_kl", "marked_kl")
    ]
    return [*found, ("Size", words.size(words.disk_bytes(model)))]


def _with_unit(metric: str, value: float | None) -> str:
    unit = " %" if words.MEASURES[metric].unit == "%" else ""
    return words.figure(metric, value) + unit


def storage(project: Path) -> dict[str, Any]:
    """What the store holds, by stage, in bytes, as the manifests say; and what is free."""
    store = store_of(project)
    stages = {}
    for stage in PIPELINE:
        total = 0
        for path in (store.root / stage.name).glob("*/manifest.json"):
            try:
                files = json.loads(path.read_bytes())["files"]
                total += sum(int(one["bytes"]) for one in files.values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # a damaged entry is said where it is used
        if total:
            stages[stage.name] = total
    return {
        "stages": stages,
        "total": sum(stages.values()),
        "free": machine.free_disk_bytes(store.root),
        "folder": str(store.root),
    }
