"""A run's page: its stages as they flow, curves, log; stop, go on, once more, duplicate.

In: a run's name. Out: the page, and its parts again as they change, as server-sent events. What is
live is rendered here, like the page itself, so that there is one way to show it. Knows no stage.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from potstill.core.charts import Line, line_chart
from potstill.errors import PotstillError, UsageError
from potstill.evaluate import words
from potstill.evaluate.page import style
from potstill.studio import decisions
from potstill.studio.diary import CURVES, Diary
from potstill.studio.guard import fields_of
from potstill.studio.launch import LOG, tail
from potstill.studio.pages import fragment, page
from potstill.studio.runs import RunView, find_run
from potstill.studio.session import Studio

PAUSE = 1.0
"""Seconds between two looks at a run that somebody watches."""
SHOWN_LOG = 12_000
PARTS = ("state", "actions", "failure", "stages", "curves", "notes", "log")


def routes(studio: Studio) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()

    @router.get("/runs/{name}")
    def show(name: str, request: Request) -> Response:
        view = find_run(studio, name)
        return page(
            request,
            studio,
            "run.html.j2",
            title=name,
            here="runs",
            tab="run",
            view=view,
            parts=parts_of(studio, view),
        )

    @router.get("/runs/{name}/live")
    async def live(name: str) -> Response:
        find_run(studio, name)
        return StreamingResponse(_changes(studio, name), media_type="text/event-stream")

    @router.get("/runs/{name}/log/{stage}")
    def log(name: str, stage: str) -> Response:
        view = find_run(studio, name)
        if stage not in view.diary.stages:
            raise UsageError(f"The run {name} has no stage {stage[:40]}.")
        text = tail(_stage_log(view, stage))
        return PlainTextResponse(text or "This stage has logged nothing.")

    @router.post("/runs/{name}/stop")
    def stop(name: str) -> Response:
        studio.launcher.stop(find_run(studio, name).folder)
        return _back(name)

    @router.post("/runs/{name}/resume")
    async def resume(name: str, request: Request) -> Response:
        said = fields_of(await request.body())
        view = find_run(studio, name)
        studio.launcher.start(view.folder, studio.project, anyway="anyway" in said)
        return _back(name)

    @router.post("/runs/{name}/again")
    async def again(name: str, request: Request) -> Response:
        """Run a finished stage once more, and all that come after it."""
        stage = fields_of(await request.body()).get("stage", "")
        view = find_run(studio, name)
        if stage not in view.again:
            raise UsageError(
                f"The run {name} has not finished a stage {stage[:40]}.", "Reload the page."
            )
        studio.launcher.start(view.folder, studio.project, again=stage)
        return _back(name)

    return router


def _back(name: str) -> Response:
    return RedirectResponse(f"/runs/{quote(name)}", 303)


async def _changes(studio: Studio, name: str) -> AsyncIterator[str]:
    """The parts of the page that changed, each time some did, until the run is over or the studio
    closes. A look that finds nothing sends a comment, which tells a dead connection apart."""
    shown: dict[str, str] = {}
    seen: tuple[Any, ...] = ()
    quiet = 0
    while not studio.closing.is_set():
        try:
            view, parts, seen = await run_in_threadpool(_look, studio, name, seen)
        except PotstillError as error:
            gone = fragment("problem.html.j2", message=error.message, hint=error.hint)
            yield _event({"failure": gone}, over=True)
            return
        new = {key: _digest(text) for key, text in parts.items()}
        changed = {key: parts[key] for key in parts if new[key] != shown.get(key)}
        shown |= new
        if changed or not view.live:
            yield _event(changed, over=not view.live, state=view.state)
        if not view.live:
            return
        quiet = 0 if changed else quiet + 1
        if quiet >= 15:
            quiet = 0
            yield ": still here\n\n"
        await asyncio.sleep(PAUSE)


def _look(
    studio: Studio, name: str, seen: tuple[Any, ...]
) -> tuple[RunView, dict[str, Markup], tuple[Any, ...]]:
    """The run, its parts, and what they were made of; no parts while that is what was seen: to
    draw them takes longer than to look, and the run needs the processor."""
    view = find_run(studio, name)
    log = _log_file(view)
    size = log.stat().st_size if log is not None and log.is_file() else 0
    now = (view.state, view.failure, view.diary.version, log, size)
    return view, {} if now == seen else parts_of(studio, view), now


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _event(parts: Mapping[str, str], **more: Any) -> str:
    return f"data: {json.dumps({'parts': dict(parts), **more})}\n\n"


def parts_of(studio: Studio, view: RunView) -> dict[str, Markup]:
    """Every part of the page that lives, as HTML."""
    names: dict[str, Any] = {
        "view": view,
        "form_secret": studio.form,
        "curves": curves_of(view.diary),
        "log": "" if (log := _log_file(view)) is None else tail(log, SHOWN_LOG),
        "logged": [name for name in view.diary.stages if _is_filled(_stage_log(view, name))],
        "decisions": 0 if view.live else decisions.decided(view)["waiting"],
        "done": sum(one.state in ("done", "reused") for one in view.diary.stages.values()),
    }
    made = {part: fragment("run_parts.html.j2", part=part, **names) for part in PARTS}
    return {part: Markup(text.strip()) for part, text in made.items()}


def _stage_log(view: RunView, stage: str) -> Path:
    return view.folder / "logs" / f"{stage}.log"


def _is_filled(log: Path) -> bool:
    """Most stages have nothing to say besides their events."""
    return log.is_file() and log.stat().st_size > 0


def _log_file(view: RunView) -> Path | None:
    """The run's own log, else that of the stage that moved last."""
    own = view.folder / LOG
    if _is_filled(own):
        return own
    begun = [one for one in view.diary.stages.values() if one.state not in ("waiting", "reused")]
    return _stage_log(view, begun[-1].name) if begun else None


def curves_of(diary: Diary) -> list[Markup]:
    """A picture for each measure of each training stage that has one."""
    charts = []
    stages = dict.fromkeys(stage for stage, _, _ in diary.curves)
    for stage in stages:
        models = dict.fromkeys(model for one, model, _ in diary.curves if one == stage)
        for metric, validation, title, unit in CURVES:
            lines = []
            for model in models:
                label = words.model_name(model) if model else stage
                for name, kind in ((metric, "train"), (validation, "validation")):
                    points = sorted(diary.curves.get((stage, model, name), {}).items())
                    shown = label if kind == "train" else f"{label}, held-out"
                    lines.append(Line(shown, style(model), points, kind))
            heading = title if len(stages) == 1 else f"{title} ({stage})"
            charts.append(line_chart(heading, lines, "steps", unit))
    charts.append(memory_of(diary))
    return [chart for chart in charts if chart]


def memory_of(diary: Diary) -> Markup:
    """The memory of the stage at work over the run's time; no picture of fewer than two moments."""
    points = [(moment / 60, held / 1e9) for moment, held in diary.memory]
    line = Line("the stage at work", style("distilled"), points, "train")
    return line_chart("Memory", [line], "minutes", "GB held")
