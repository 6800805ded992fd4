"""Files dropped into the page: streamed into the project's `documents/`, checked as ingest does.

In: a name and a body. Out: a file below `documents/`, whole or not there, and how a recipe names
it. Knows no recipe.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from potstill import display
from potstill.core.files import disk_errors, file_digest
from potstill.errors import InputError
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.reader_plugins import readers_here
from potstill.ingest.readers import CONTENT, KINDS, OWN, check_file
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.project import DOCUMENTS
from potstill.studio.session import Studio

LARGEST_UPLOAD = 2_000_000_000
LARGEST_DOCUMENT = int(IngestConfig.model_fields["max_file_bytes"].default)
LONGEST_NAME = 120
MOST_SHOWN = 200


def routes(studio: Studio) -> APIRouter:
    """The route of uploads."""
    router = APIRouter()

    @router.post("/files")
    async def upload(name: str, request: Request) -> dict[str, Any]:
        """Take in a file, the body."""
        kept = clean_name(name)
        said = request.headers.get("content-length", "")
        _check_size(kept, int(said) if said.isdigit() else 0)
        folder = studio.project / DOCUMENTS
        part = folder / f".upload-{secrets.token_hex(8)}{Path(kept).suffix.lower()}"
        with disk_errors(folder, "create"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            await _receive(request, part, kept)
            file = await run_in_threadpool(_take, part, folder, kept)
        finally:
            part.unlink(missing_ok=True)
        return {
            "source": f"{DOCUMENTS}/{file.name}",
            "name": file.name,
            "size": display.size(file.stat().st_size),
        }

    return router


def accepted() -> list[str]:
    """Suffixes of the files that can be read, by an installed plug-in too."""
    return sorted({*OWN, *readers_here(OWN)})


def plugins_for(files: Iterable[str]) -> list[str]:
    """The plug-ins that read those of the files that Potstill does not read itself, by name."""
    here, suffixes = readers_here(OWN), {Path(one).suffix.lower() for one in files}
    return sorted({reader.name for suffix, reader in here.items() if suffix in suffixes})


def clean_name(name: str) -> str:
    """The file's own name, without folders and what a file system or a shell could trip over.

    Errors: InputError for a name of which nothing is left, or a kind of file that nobody reads.
    """
    base = PurePosixPath(name.replace("\\", "/")).name
    kept = re.sub(r"[^\w .,()+-]+", "_", base).strip(" ._")
    suffix = PurePosixPath(kept).suffix.lower()
    if suffix not in accepted():
        raise InputError(
            f"{base[:80] or 'This file'} is of no kind that Potstill reads "
            f"({suffix or 'it has no suffix'}).",
            f"It reads {', '.join(accepted())}.",
        )
    stem = kept[: -len(suffix)].strip(" ._") or "file"
    return f"{stem[:LONGEST_NAME]}{suffix}"


def files_of(project: Path) -> list[tuple[str, str]]:
    """(source, size in words) of the first files of `documents/`, for the list of the page."""
    folder, known = project / DOCUMENTS, accepted()
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix.lower() in known:
            size = display.size(path.stat().st_size)
            found.append((path.relative_to(project).as_posix(), size))
        if len(found) == MOST_SHOWN:
            break
    return found


def _check_size(name: str, size: int) -> None:
    rows = Path(name).suffix.lower() in ROW_KINDS
    limit = LARGEST_UPLOAD if rows else LARGEST_DOCUMENT
    if size > limit:
        raise InputError(
            f"{name} is larger than {display.size(limit)}.",
            f"Split it, or copy it into {DOCUMENTS}/ yourself and raise ingest.max_file_bytes.",
        )


async def _receive(request: Request, part: Path, name: str) -> None:
    """The body, into a file; nothing of it is held in memory."""
    size = 0
    try:
        with disk_errors(part, "write"), part.open("wb") as file:
            async for piece in request.stream():
                size += len(piece)
                _check_size(name, size)
                file.write(piece)
    except ClientDisconnect as error:
        raise InputError(f"{name} did not arrive whole.", "Drop it once more.") from error


def _take(part: Path, folder: Path, name: str) -> Path:
    """Check the file and give it its name; the same content twice is one file."""
    try:
        check_file(part, _content(part.suffix), None)
    except UnusableError as error:
        raise InputError(
            f"{name} cannot be used: {error.detail}.", "Choose another file."
        ) from error
    stem, suffix, number = Path(name).stem, Path(name).suffix, 2
    target = folder / name
    digest = ""
    while target.exists():
        if target.stat().st_size == part.stat().st_size:
            digest = digest or file_digest(part)
            if file_digest(target) == digest:
                return target
        target = folder / f"{stem}-{number}{suffix}"
        number += 1
    with disk_errors(target, "write"):
        part.rename(target)
    return target


def _content(suffix: str) -> tuple[str, ...]:
    """What the first bytes of such a file may say."""
    if kind := KINDS.get(suffix):
        return CONTENT.get(kind, ("text",))
    if kind := ROW_KINDS.get(suffix):
        return ("a Parquet file",) if kind == "Parquet" else ("text",)
    return readers_here(OWN)[suffix].content
