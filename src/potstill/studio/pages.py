"""How every page of the studio is made: one engine, one frame, words for figures, words for errors.

In: a template's name and what it shows. Out: HTML, with every text escaped. Knows no page.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse

from potstill import display
from potstill.core import pages
from potstill.studio.session import Studio

FOLDER = Path(__file__).parent
STATIC = {
    "style.css": (Path(pages.__file__).parent / "style.css", "text/css"),
    "icon.svg": (FOLDER / "static" / "icon.svg", "image/svg+xml"),
    "studio.css": (FOLDER / "static" / "studio.css", "text/css"),
    **{
        name: (FOLDER / "static" / name, "text/javascript")
        for name in (
            "common.js",
            "home.js",
            "live.js",
            "recipe.js",
            "rows.js",
            "play.js",
            "marks.js",
        )
    },
}
"""What pages load, all from this package."""


@cache
def engine() -> Environment:
    """The template engine of the studio."""
    made = pages.environment(FOLDER / "templates")
    made.filters.update(
        size=display.size, duration=display.duration, number=display.number, ago=ago
    )
    return made


def ago(moment: float | None) -> str:
    """How long ago a moment was, for people."""
    if not moment:
        return ""
    seconds = max(0.0, time.time() - moment)
    if seconds < 45:
        return "just now"
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min ago"
    if seconds < 36 * 3600:
        return f"{round(seconds / 3600)} h ago"
    return f"{round(seconds / 86400)} days ago"


def fragment(template: str, **names: Any) -> str:
    """A part of a page."""
    return engine().get_template(template).render(**names)


def page(
    request: Request,
    studio: Studio,
    template: str,
    *,
    title: str,
    here: str = "",
    status: int = 200,
    **names: Any,
) -> HTMLResponse:
    """A whole page. here: which entry of the navigation it belongs to."""
    text = fragment(
        template,
        title=title,
        here=here,
        project=studio.project.name or str(studio.project),
        project_folder=str(studio.project),
        form_secret=studio.form,
        path=request.url.path,
        **names,
    )
    return HTMLResponse(text, status)


def refusal(request: Request, status: int, title: str, words: str) -> HTMLResponse:
    """The page of a request that is refused before it reaches a page; it knows no secret."""
    if request.headers.get("x-form") is not None or "json" in request.headers.get("accept", ""):
        return HTMLResponse(fragment("problem.html.j2", message=title, hint=words), status)
    return HTMLResponse(fragment("refusal.html.j2", title=title, words=words), status)
