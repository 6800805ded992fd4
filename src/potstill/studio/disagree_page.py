"""Where a student's answer and its teacher part: the answer's tokens in five shades.

In: a question and the answer that was given. Out: a part of the chat's page. The figures are those
of `potstill disagree`, which runs as a process of its own: torch and two models stay out of the
studio. Knows no model.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

from potstill.studio.commands import told
from potstill.studio.pages import fragment
from potstill.studio.runs import find_run
from potstill.studio.session import Studio

BORDERS = (0.05, 0.2, 0.5, 1.0)
"""Nats at which the next shade begins."""
NAMES = ("below 0.05", "0.05 to 0.2", "0.2 to 0.5", "0.5 to 1", "above 1")
LISTED = 5
END = "(end)"
"""For the sign that ends a turn, which says nothing to a reader."""


class Answered(BaseModel):
    """What was asked and said."""

    question: str = Field(min_length=1, max_length=4000)
    answer: str = Field(min_length=1, max_length=20_000)
    passages: bool = True


def routes(studio: Studio) -> APIRouter:
    """The route of the colours."""
    router = APIRouter()

    @router.post("/runs/{name}/disagree")
    async def disagree(name: str, said: Answered) -> Response:
        run, looked_up = find_run(studio, name).name, "passages" if said.passages else "no-passages"
        words = [f"--{looked_up}", "--", said.question, said.answer]
        return HTMLResponse(coloured(await told(studio, "disagree", run, words, "The comparison")))

    return router


def coloured(found: list[dict[str, Any]]) -> str:
    """The tokens with their shades, the legend, and those that part most."""
    ends = {one["text"]: END for one in found[-1:] if one["special"]}
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
