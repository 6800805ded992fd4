"""Projects: those that were opened in a studio before, each opened anew beside this one; a new one.

In: the list of this user's projects, a name. Out: what home lists, and the address of another
project's studio, which runs in this process at a port of its own. Knows no run but by its folder.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
from fastapi import APIRouter, Request
from filelock import FileLock
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from potstill.core.claims import holder
from potstill.core.files import write_json
from potstill.errors import StoreError, UsageError
from potstill.project import new_project
from potstill.studio.guard import fields_of
from potstill.studio.pages import page
from potstill.studio.runs import is_run
from potstill.studio.session import Studio

PATIENCE = 5.0
"""Seconds to wait for another studio that writes the list."""
MOST = 40
"""Projects that are remembered; the one that was not opened for longest is forgotten first."""


def routes(studio: Studio) -> APIRouter:
    """The route of the list's buttons."""
    router = APIRouter()

    @router.post("/projects")
    async def open_project(request: Request) -> Response:
        """Open a project of the list, or make one beside this one and open it: its address. It is
        another origin, to which a form may not lead, so whoever has no script gets it as a link."""
        said = fields_of(await request.body())
        if "name" in said:
            made = new_project(said["name"], said.get("recipe", ""), studio.project.parent)
            folder, page_of_it = made.folder, "new"
        else:
            folder, page_of_it = _of_list(said.get("folder", "")), ""
        if studio.opener is None:
            raise UsageError(
                "This studio cannot open another.", f"potstill studio --project {folder}"
            )
        address = await run_in_threadpool(studio.opener, folder, page_of_it)
        if request.headers.get("x-form") is not None:
            return JSONResponse({"address": address})
        return page(
            request,
            studio,
            "opened.html.j2",
            title=f"{folder.name} is open",
            here="runs",
            address=address,
        )

    return router


def list_file() -> Path:
    """Where the list is kept: what a program remembers from one time to the next, for this user."""
    return platformdirs.user_state_path("potstill") / "projects.json"


def remember(folder: Path) -> None:
    """Put a project at the top of the list. A list that cannot be written is no reason to stop."""
    file = list_file()
    with suppress(OSError, StoreError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=PATIENCE):
            found = {str(folder): time.time(), **{k: v for k, v in _read() if k != str(folder)}}
            write_json(file, [list(one) for one in list(found.items())[:MOST]])


def others(studio: Studio) -> list[dict[str, Any]]:
    """The projects that were opened before and are still there, the last one first: name, folder,
    how many runs they have and how many are at work, when they were opened."""
    found = []
    for name, opened in _read():
        folder = Path(name)
        if folder == studio.project or not folder.is_dir():
            continue
        runs = [one for one in (folder / "runs").glob("*") if is_run(one)]
        found.append(
            {
                "name": folder.name,
                "folder": name,
                "runs": len(runs),
                "working": sum(holder(one) is not None for one in runs),
                "opened": opened,
            }
        )
    return found


def _of_list(name: str) -> Path:
    """The folder, which a page may name only if it is in the list."""
    folder = Path(name)
    if name not in (one for one, _ in _read()) or not folder.is_dir():
        raise UsageError(
            f"The project {name[:200]} is not there.", "It may have been moved or deleted."
        )
    return folder


def _read() -> list[tuple[str, float]]:
    """(folder, when it was opened); nothing of a list that is damaged."""
    try:
        listed = json.loads(list_file().read_text("utf-8"))
        return [(str(folder), float(opened)) for folder, opened in listed]
    except (OSError, ValueError, TypeError):
        return []
