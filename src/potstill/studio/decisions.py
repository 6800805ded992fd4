"""Decisions about rows: accept, reject, edit, add, and the way back, as the forms of the data page.

In: a form. Out: the project's file of decisions, as `potstill rows` writes it. Changes no result:
the run goes on with them when somebody says so. Knows no stage.
"""

from __future__ import annotations

from typing import Any, get_args
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from potstill.curate.edits import Action, Edit
from potstill.editing import decide, edits_of, take_back, waiting
from potstill.errors import PotstillError, UsageError
from potstill.studio.guard import fields_of
from potstill.studio.runs import RunView, find_run
from potstill.studio.session import Studio

TAKE_BACK = "take_back"
WORDS = {"accept": "kept", "reject": "set aside", "edit": "changed", "add": "written"}
"""What was decided, for people."""


def routes(studio: Studio) -> APIRouter:
    """The route of the forms."""
    router = APIRouter()

    @router.post("/runs/{name}/rows")
    async def change(name: str, request: Request) -> Response:
        said = fields_of(await request.body())
        view = find_run(studio, name)
        await run_in_threadpool(_change, view, said)
        # Back to the rows that were looked at; of the address only its choice of rows is taken.
        query = urlsplit(request.headers.get("referer", "")).query
        return RedirectResponse(f"/runs/{quote(name)}/data" + (f"?{query}" if query else ""), 303)

    return router


def _change(view: RunView, said: dict[str, str]) -> None:
    action, row = said.get("action", ""), said.get("row", "")
    if action == TAKE_BACK:
        take_back(view.run, row)
        return
    if action not in get_args(Action):
        raise UsageError("Nothing was decided.", "Use the buttons of the page.")
    text = {
        name: said.get(name, "").replace("\r\n", "\n")
        for name in ("question", "answer", "chunk", "note")
    }
    decide(view.run, row, action, **text)  # type: ignore[arg-type]


def decided(view: RunView) -> dict[str, Any]:
    """What the page shows of decisions: `edits` by row, how many wait, rows that were `written`
    and wait, and why nothing can be decided, if it cannot (`closed`)."""
    try:
        edits = edits_of(view.run)
        left = waiting(view.run)
    except (PotstillError, OSError, LookupError) as error:
        return {"edits": {}, "waiting": 0, "written": [], "closed": str(error)}
    written: list[Edit] = [one for one in edits.values() if one.action == "add"]
    return {"edits": edits, "waiting": left, "written": written, "closed": ""}
