"""Service: the student of a run in use: traffic, drift, feedback, versions, and what follows.

In: a run's name; a reviewer's decisions. Out: the page; feedback accepted or rejected, an alarm
marked as false, a version promoted or taken back, the service and an improvement started as
processes of their own. All as `potstill serve`, `feedback`, `drift`, `improve`, `promote` and
`rollback` do it. Serves nothing itself.
"""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from potstill import drifting
from potstill.curate.config import ENCODER
from potstill.errors import PotstillError, UsageError
from potstill.improve import promote, rollback
from potstill.run_folder import version_of, versions_of
from potstill.serve import drift_page
from potstill.serve.address import address_of
from potstill.serve.review import review
from potstill.studio.guard import fields_of
from potstill.studio.launch import last_words, tail, written_at
from potstill.studio.pages import page
from potstill.studio.results import REPORT_POLICY
from potstill.studio.runs import RunView, find_run
from potstill.studio.service_figures import figures_of
from potstill.studio.session import Studio

LOG = "improve.log"
SERVICE_LOG = "serve/service.log"
SHOWN_LOG = 4000
PORT = "8000"
LOOK_AGAIN = "2"
"""Seconds after which the page is asked for anew while the service starts or ends."""


def routes(studio: Studio) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()

    @router.get("/runs/{name}/service")
    def service(name: str, request: Request) -> Response:
        view = find_run(studio, name)
        there = view.report is not None
        improving = studio.launcher.running(view.folder / LOG)
        running = studio.launcher.running(view.folder / "serve")
        stopping = studio.launcher.stopping(view.folder / "serve")
        address = address_of(view.folder / "serve")
        shown = page(
            request,
            studio,
            "service.html.j2",
            title=f"{name}: service",
            here="runs",
            tab="service",
            view=view,
            there=there,
            improving=improving,
            failure=None if improving else last_words(view.folder, LOG),
            failed=written_at(view.folder / LOG),
            port=_asked_port(request.query_params.get("port", "")),
            log=tail(view.folder / LOG, SHOWN_LOG),
            running=running,
            lacking=_lacking(view) if there else None,
            stopping=stopping,
            address=address,
            unserved=None if running else last_words(view.folder, SERVICE_LOG),
            service_log=tail(view.folder / SERVICE_LOG, SHOWN_LOG),
            **(figures_of(studio, view) if there else {}),
        )
        if running and (stopping or not address):
            shown.headers["Refresh"] = LOOK_AGAIN
        return shown

    @router.get("/runs/{name}/drift")
    def drift(name: str) -> Response:
        """The page that `potstill drift --page` writes."""
        found = drifting.read_drift(find_run(studio, name).run)
        policy = {"Content-Security-Policy": REPORT_POLICY}
        return HTMLResponse(drift_page.page(found), headers=policy)

    @router.post("/runs/{name}/service")
    async def change(name: str, request: Request) -> Response:
        said = fields_of(await request.body())
        view = find_run(studio, name)
        await run_in_threadpool(_change, studio, view, said)
        again = f"?port={quote(said['port'])}" if said.get("action") == "serve" else ""
        return RedirectResponse(f"/runs/{quote(name)}/service{again}", 303)

    return router


def _lacking(view: RunView) -> PotstillError | None:
    """Why no service could begin: the served version's file is gone."""
    try:
        serving = versions_of(view.run).current()
        version_of(view.run, serving.version).exported(serving.file or None)
    except PotstillError as error:
        return error
    return None


def _change(studio: Studio, view: RunView, said: dict[str, str]) -> None:
    action = said.get("action", "")
    if action in ("accept", "reject"):
        answer = said.get("answer", "").replace("\r\n", "\n").strip()
        accepts = action == "accept"
        review(
            view.folder / "serve" / "feedback.sqlite",
            [said.get("id", "")],
            "accepted" if accepts else "rejected",
            answer=answer if accepts and answer else None,
            note=said.get("note", "").strip() or None,
        )
    elif action == "dismiss":
        alarm = said.get("alarm", "")
        if not (alarm.isdecimal() and len(alarm) < 12):
            raise UsageError("Which alarm is false?", "Reload the page.")
        drifting.dismiss(view.run, int(alarm))
    elif action == "serve":
        words = ["serve", view.name, "--port", _port(said.get("port", ""))]
        words += ["--encoder", ENCODER] if "meaning" in said else []
        log = view.folder / SERVICE_LOG
        studio.launcher.launch(view.folder / "serve", words, studio.project, log)
    elif action == "stop":
        studio.launcher.stop(view.folder / "serve")
    elif action == "improve":
        words = ["improve", view.name]
        studio.launcher.launch(view.folder / LOG, words, studio.project, view.folder / LOG)
    elif action == "promote":
        unproven = "unproven" in said
        promote(view.run, said.get("candidate", "")[:64], accept_unproven=unproven)
    elif action == "rollback":
        rollback(view.run)
    else:
        raise UsageError("Nothing was chosen.", "Use the buttons of the page.")


def _is_port(said: str) -> bool:
    return said.isascii() and said.isdecimal() and len(said) < 6 and int(said) < 65536


def _asked_port(said: str) -> str:
    """What the field begins with: what was asked for last, as it may be wanted again."""
    return said if _is_port(said) else PORT


def _port(said: str) -> str:
    if _is_port(said):
        return said
    raise UsageError(
        f"{said[:20] or 'Nothing'} is no port.", "A number up to 65535; 0: any that is free."
    )
