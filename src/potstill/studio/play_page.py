"""Chat: one question to a run's students, and to its teacher beside them, with or without passages.

In: a finished run, a question, how to draw. Out: answers as they are written, with speed and the
passage that they are from. The student is asked in the words that it was taught.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from potstill import display
from potstill.core.files import read_records
from potstill.errors import PotstillError, UsageError
from potstill.generate import PromptConfig, student_turn
from potstill.models.packages import is_fetched, pinned
from potstill.models.refs import gguf_file, parse
from potstill.needs import PACKAGE
from potstill.records import Chunk
from potstill.studio.blind_pairs import LABELS, Pair
from potstill.studio.data_page import marked
from potstill.studio.pages import fragment, page
from potstill.studio.play import Asked, Player
from potstill.studio.runs import RunView, find_run
from potstill.studio.session import Studio

if TYPE_CHECKING:
    from potstill.serve.retrieval import PassageIndex

TEACHER = "teacher"
LONGEST_QUESTION = 4000


class Question(BaseModel):
    """What is asked of one model."""

    model: str = Field(max_length=200, description="Its key; in a blind vote A or B.")
    pair: str = Field("", max_length=40, description="The blind vote that it belongs to.")
    question: str = Field(min_length=1, max_length=LONGEST_QUESTION)
    passages: bool = True
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=1024)
    seed: int = Field(0, ge=0, lt=2**31)


def routes(studio: Studio) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()

    @router.get("/runs/{name}/chat")
    def chat(name: str, request: Request) -> Response:
        view = find_run(studio, name)
        return page(
            request,
            studio,
            "chat.html.j2",
            title=f"{name}: chat",
            here="runs",
            tab="chat",
            view=view,
            models=models_of(view),
            longest=LONGEST_QUESTION,
        )

    @router.post("/runs/{name}/chat")
    async def ask(name: str, said: Question) -> Response:
        view = find_run(studio, name)
        passage, looked, model = None, False, said.model
        pair = studio.pairs.find(said.pair, view.name) if said.pair else None
        if pair is not None:
            if said.model not in LABELS:
                raise UsageError("A blind vote is between A and B.", "Ask once more.")
            model = pair.model(said.model)
        if said.passages:
            index = await run_in_threadpool(_passages, studio, view)
            found = await run_in_threadpool(index.search, said.question, 1)
            passage, looked = found[0] if found else None, len(index) > 0
        gguf = await run_in_threadpool(_file_of, view, model)
        content = _prompt(view, passage, said.question)
        asked = Asked(content, said.temperature, said.top_p, said.max_tokens, said.seed)
        events = _events(studio.player, gguf, asked, passage, looked)
        if pair is not None:
            events = _hidden(events, pair, said.model)
        return StreamingResponse(events, media_type="text/event-stream")

    return router


def models_of(view: RunView) -> list[tuple[str, str, str]]:
    """Who can be asked: (key, name, about). The smallest exported file first; the teacher, if it is
    a GGUF that is on this machine."""
    files = sorted((view.folder / "export").glob("*.gguf"), key=lambda one: one.stat().st_size)
    found = [(one.name, one.name, display.size(one.stat().st_size)) for one in files]
    if found and _teacher_is_here(str(view.recipe.get("teacher", ""))):
        found.append((TEACHER, f"Teacher, {view.recipe['teacher']}", "as it came"))
    return found


def _teacher_is_here(reference: str) -> bool:
    """Whether it is a GGUF that asking would not fetch first."""
    try:
        if reference.startswith(PACKAGE):
            parsed = parse(reference)
            package = pinned(parsed.name, parsed.revision)
            return package.gguf is not None and is_fetched(package)
        return reference.endswith(".gguf") and Path(reference).is_file()
    except PotstillError:
        return False


def _file_of(view: RunView, model: str) -> Path:
    if model not in {key for key, _, _ in models_of(view)}:
        raise UsageError(f"The run {view.name} has no model {model[:80]}.", "Reload the page.")
    if model != TEACHER:
        return view.run.exported(model)
    file = gguf_file(parse(str(view.recipe["teacher"])))
    assert file is not None  # `models_of` offers no other
    return file


def _prompt(view: RunView, passage: Chunk | None, question: str) -> str:
    prompt = PromptConfig.model_validate(view.run.record["recipe"]["generate"]["prompt"])
    return student_turn(prompt, passage.text if passage else "", question)


def _passages(studio: Studio, view: RunView) -> PassageIndex:
    """The passages of the run's documents; none where it read rows alone."""
    path = view.run.artifact("ingest").path("chunks.jsonl")
    index: PassageIndex | None = studio.passages.get(path)
    if index is None:
        from potstill.serve.retrieval import PassageIndex

        index = PassageIndex(read_records(path, Chunk))
        studio.passages[path] = index
    return index


async def _events(
    player: Player, gguf: Path, asked: Asked, passage: Chunk | None, looked: bool
) -> AsyncIterator[str]:
    answer = ""
    try:
        async for event in player.answer(gguf, asked):
            answer += event.get("piece", "")
            if "tokens" in event:
                event = {"done": _figures(event)}
                if looked:
                    event["passage"] = _cited(passage, answer)
            yield f"data: {json.dumps(event)}\n\n"
    except PotstillError as error:
        problem = fragment("problem.html.j2", message=error.message, hint=error.hint)
        yield f"data: {json.dumps({'problem': problem})}\n\n"


async def _hidden(events: AsyncIterator[str], pair: Pair, label: str) -> AsyncIterator[str]:
    """The events without figures, for speed would tell who it is; notes that it has answered."""
    async for text in events:
        event = json.loads(text.removeprefix("data: "))
        if "done" in event:
            pair.answered.add(label)
            event["done"] = "answered"
        if "problem" in event:  # its words may name the file
            event["problem"] = fragment(
                "problem.html.j2", message="It could not answer.", hint="Ask without a blind vote."
            )
        yield f"data: {json.dumps(event)}\n\n"


def _figures(event: dict[str, Any]) -> str:
    parts = [f"{event['tokens']} tokens"]
    if event["rate"]:
        parts.append(f"{display.number(event['rate'])} tokens/s")
    parts.append(f"first after {display.duration(event['wait'])}")
    if event["looped"]:
        parts.append("stopped: it was repeating itself")
    elif event["cut"]:
        parts.append("cut off: as long as was allowed")
    return " · ".join(parts)


def _cited(passage: Chunk | None, answer: str) -> str:
    if passage is None:
        return fragment("cited.html.j2", passage=None, pieces=[])
    said = answer.strip().rstrip(".")
    pieces = marked(passage.text, None, [said] if said else [])
    return fragment("cited.html.j2", passage=passage, pieces=pieces)
