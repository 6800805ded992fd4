"""Search over settings: the studies of the project, and the page that each wrote.

In: `studies/` of the project. Out: a list, and each study's own page. Starts no study.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from potstill.core.claims import holder
from potstill.core.files import disk_errors
from potstill.errors import UsageError
from potstill.studio.pages import page
from potstill.studio.results import REPORT_POLICY
from potstill.studio.runs import NAME
from potstill.studio.session import Studio
from potstill.tune.study import builtin_studies


def routes(studio: Studio) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter()

    @router.get("/search")
    def search(request: Request) -> Response:
        return page(
            request,
            studio,
            "search.html.j2",
            title="Search over settings",
            here="search",
            studies=studies_of(studio.project),
            builtin=list(builtin_studies()),
        )

    @router.get("/search/{name}")
    def study(name: str) -> Response:
        path = studio.project / "studies" / name / "report.html"
        if not NAME.fullmatch(name) or not path.is_file():
            raise UsageError(
                f"The study {name[:64]} has no page yet.", "It is written as its trials end."
            )
        with disk_errors(path, "read"):
            text = path.read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})

    return router


def studies_of(project: Path) -> list[dict[str, Any]]:
    """Every study, the last one first: name, whether it runs, has a page, its recipes."""
    found = []
    for folder in (project / "studies").glob("*"):
        if NAME.fullmatch(folder.name) and (folder / "study.db").is_file():
            found.append(
                {
                    "name": folder.name,
                    "running": holder(folder) is not None,
                    "page": (folder / "report.html").is_file(),
                    "recipes": sorted(one.name for one in folder.glob("*.yaml")),
                    "when": (folder / "study.db").stat().st_mtime,
                }
            )
    return sorted(found, key=lambda one: -one["when"])
