"""A question to a student that marks answers: the answer, how probable it is, where it stands.

In: a question, and a text of the user's own if it is not about the run's documents. Out: a part of
the chat's page. The figures are those of `potstill ask`. Knows no model.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

from potstill.studio.commands import told
from potstill.studio.data_page import marked
from potstill.studio.pages import fragment
from potstill.studio.runs import find_run
from potstill.studio.session import Studio

LONGEST_TEXT = 50_000


class Asked(BaseModel):
    """What is asked, and about which text; an empty one: the run's documents."""

    question: str = Field(min_length=1, max_length=4000)
    text: str = Field("", max_length=LONGEST_TEXT)


def routes(studio: Studio) -> APIRouter:
    """The route of the question."""
    router = APIRouter()

    @router.post("/runs/{name}/ask")
    async def ask(name: str, said: Asked) -> Response:
        run = find_run(studio, name).name
        about = ["--passage", "-"] if said.text.strip() else []
        words = [*about, "--", said.question]
        found = await told(studio, "ask", run, words, "The question", said.text)
        return HTMLResponse(answered(found))

    return router


def answered(found: dict[str, Any]) -> str:
    """The answer, and its passage with the answer marked."""
    span = {"start": found["start"], "end": found["end"]}
    pieces = marked(found["passage"], span, []) if found["answer"] else []
    return fragment("marked.html.j2", found=found, pieces=pieces)
