"""Blind votes: two models answer one question, and nobody in the browser knows which is which.

In: a question, two models, a vote. Out: their answers as A and B in an order that is drawn, and the
vote in the judge's record, `judge/human-votes.jsonl` of the run, which `potstill eval --votes` sums
up. Only after the vote the names are told. Knows no engine.
"""

from __future__ import annotations

import getpass
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from potstill.errors import InputError, UsageError
from potstill.evaluate.judge import TIE, Vote, pair_summary
from potstill.evaluate.votes import add_vote
from potstill.studio.blind_pairs import LABELS, Pair
from potstill.studio.play_page import models_of
from potstill.studio.runs import RunView, find_run
from potstill.studio.session import Studio

FILE = "human-votes.jsonl"


class Two(BaseModel):
    """Who answers what."""

    models: tuple[str, str]
    question: str = Field(min_length=1, max_length=4000)


class Choice(BaseModel):
    """The better answer."""

    pair: str = Field(max_length=40)
    winner: Literal["A", "B", "tie"]


def routes(studio: Studio) -> APIRouter:
    """The routes of the vote."""
    router = APIRouter()

    @router.post("/runs/{name}/blind")
    def begin(name: str, said: Two) -> dict[str, str]:
        view = find_run(studio, name)
        known = {key for key, _, _ in models_of(view)}
        if len(set(said.models)) < 2 or not set(said.models) <= known:
            raise UsageError("A blind vote needs two models.", "Choose two of the list.")
        return {"pair": studio.pairs.begin(view.name, said.question, said.models)}

    @router.post("/runs/{name}/vote")
    async def vote(name: str, said: Choice) -> dict[str, Any]:
        view = find_run(studio, name)
        pair = studio.pairs.close(said.pair, view.name)
        return await run_in_threadpool(_keep, view, pair, said.winner)

    return router


def _keep(view: RunView, pair: Pair, label: str) -> dict[str, Any]:
    """Write the vote; the names, and what all votes on the two come to."""
    vote = Vote(
        row=pair.row,
        models=pair.models,
        swapped=pair.swapped,
        winner=TIE if label == TIE else pair.model(label),
        judge=f"human:{getpass.getuser()}",
    )
    votes = add_vote(view.folder / "judge" / FILE, vote)
    return {"names": [pair.model(one) for one in LABELS], "said": _summed(votes, pair.models)}


def _summed(votes: list[Vote], models: tuple[str, str]) -> str:
    try:
        found = pair_summary(votes, models)
    except InputError:  # of a single row nothing can be said
        return "Your vote is kept."
    first, second = models
    low, high = (100 * found["preference"][end] for end in ("low", "high"))
    ties = found["ties"] + found["contradictions"]
    return (
        f"{found['rows']} questions so far: {first} {found['wins'][first]}, {second} "
        f"{found['wins'][second]}, ties {ties}. {first} is preferred in {low:.0f} to {high:.0f}%."
    )
