"""The application: all pages over one studio, behind the guard, every error a page in words.

In: a studio. Out: an ASGI application. Knows no port and no process.
"""

from __future__ import annotations

import traceback

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.types import ASGIApp

from potstill.errors import PotstillError, UsageError
from potstill.studio import (
    ask_page,
    blind,
    data_page,
    decisions,
    disagree_page,
    home,
    new_run,
    play_page,
    projects,
    results,
    run_page,
    search_page,
    service_page,
    uploads,
)
from potstill.studio.guard import Guard
from potstill.studio.pages import STATIC, fragment, page, refusal
from potstill.studio.session import Studio

WORDS = {
    404: ("There is no such page", "The address may be old, or what it showed was deleted."),
    405: ("That does not work here", "Go back and use the buttons of the page."),
    413: ("That is too much", "Send less at once."),
}


def application(studio: Studio) -> ASGIApp:
    """The studio as an ASGI application."""
    app = FastAPI(title="Potstill studio", docs_url=None, redoc_url=None, openapi_url=None)
    for part in (
        home, projects, new_run, uploads, run_page, data_page, decisions, results, play_page,
        search_page, service_page, blind, disagree_page, ask_page,
    ):  # fmt: skip
        app.include_router(part.routes(studio))
    _static(app)
    _problems(app, studio)
    return Guard(app, studio, refusal)


def _static(app: FastAPI) -> None:
    @app.get("/static/{name}")
    def static(name: str) -> Response:
        """Styles and scripts of this package, and nothing else."""
        if name not in STATIC:
            raise HTTPException(404)
        path, kind = STATIC[name]
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})


def _problems(app: FastAPI, studio: Studio) -> None:
    def say(request: Request, status: int, message: str, hint: str) -> Response:
        if request.headers.get("x-form") is not None:  # a script asks, and shows it in its place
            return HTMLResponse(fragment("problem.html.j2", message=message, hint=hint), status)
        return page(request, studio, "error.html.j2", title=message, status=status, words=hint)

    @app.exception_handler(PotstillError)
    async def foreseen(request: Request, error: Exception) -> Response:
        assert isinstance(error, PotstillError)
        return say(request, 404 if type(error) is UsageError else 400, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])[:80]
        return say(request, 422, f"{place or 'What was sent'}: {str(first['msg'])[:200]}.", "")

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title, words = WORDS.get(error.status_code, ("That did not work", str(error.detail)))
        return say(request, error.status_code, title, words)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        traceback.print_exception(error)  # in the terminal, for who has to mend it
        return say(
            request,
            500,
            "The studio failed in a way nobody foresaw",
            f"{type(error).__name__}: {str(error)[:300]} Runs are not touched by this; reload the "
            "page, and if it stays, tell us.",
        )
