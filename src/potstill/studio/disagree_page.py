"""Where a student's answer and its teacher part: the answer's tokens in five shades.

In: a question and the answer that was given. Out: a part of the chat's page. The figures are those
of `potstill disagree`, which runs as a process of its own: torch and two models stay out of the
studio. Knows no model.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

from potstill.errors import PotstillError, StoreError
from potstill.studio.pages import fragment
from potstill.studio.runs import find_run
from potstill.studio.session import Studio

BORDERS = (0.05, 0.2, 0.5, 1.0)
"""Nats at which the next shade begins."""
NAMES = ("below 0.05", "0.05 to 0.2", "0.2 to 0.5", "0.5 to 1", "above 1")
LISTED = 5
END = "(end)"
"""For a template's own signs, which say nothing to a reader."""
PATIENCE = 600.0


class Answered(BaseModel):
    """What was asked and said."""

    question: str = Field(min_length=1, max_length=4000)
    answer: str = Field(min_length=1, max_length=20_000)
    passages: bool = True


def routes(studio: Studio) -> APIRouter:
    """The route of the colours."""
    router = APIRouter()
    turn = asyncio.Lock()  # two models at a time are enough for one machine

    @router.post("/runs/{name}/disagree")
    async def disagree(name: str, said: Answered) -> Response:
        view = find_run(studio, name)
        words = ["disagree", view.name, "--json", "--project", str(studio.project)]
        words += ["--passages" if said.passages else "--no-passages"]
        async with turn:
            found = await _run([*words, "--", said.question, said.answer])
        return HTMLResponse(coloured(found))

    return router


async def _run(words: list[str]) -> list[dict[str, Any]]:
    """What the command says. Errors: PotstillError with the command's own words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "potstill",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "400"},
        start_new_session=True,
    )
    try:
        told, wrong = await asyncio.wait_for(process.communicate(), PATIENCE)
    except BaseException as error:  # the browser left, or it takes too long
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise StoreError("The comparison took too long.", "Ask for a shorter answer.") from None
        raise
    if process.returncode == 0:
        found: list[dict[str, Any]] = json.loads(told)
        return found
    lines = wrong.decode("utf-8", "replace").splitlines()
    place = next((n for n, line in enumerate(lines) if line.startswith("Error: ")), None)
    if place is None:
        raise PotstillError("The comparison failed.", " ".join(lines[-1:])[:300])
    hint = lines[place + 1].strip() if place + 1 < len(lines) else ""
    raise PotstillError(lines[place].removeprefix("Error: "), hint)


def coloured(found: list[dict[str, Any]]) -> str:
    """The tokens with their shades, the legend, and those that part most."""
    ends = {one["text"]: END for one in found if one["special"]}
    tokens = [
        one
        | {
            "shade": shade_of(one["kl"]),
            "text": ends.get(one["text"], one["text"]),
            "instead": ends.get(one["instead"], one["instead"]),
        }
        for one in found
    ]
    apart = sorted(tokens, key=lambda one: -one["kl"])[:LISTED]
    mean = sum(one["kl"] for one in tokens) / len(tokens) if tokens else 0.0
    return fragment(
        "disagreement.html.j2",
        tokens=tokens,
        names=NAMES,
        apart=[one for one in apart if one["shade"] > 0],
        mean=mean,
        same=sum(one["agree"] for one in tokens),
    )


def shade_of(kl: float) -> int:
    """From 0, where they hardly part, to 4."""
    return sum(kl >= border for border in BORDERS)
