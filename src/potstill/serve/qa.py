"""`POST /v1/qa`: questions to a student that marks answers, in a context or in the documents.

In: validated requests. Out: the best span of all passages that were read, with its probability, its
place and its page; or that none of them answers. Admission, limits, deadlines, figures and feedback
are those of every other answer (`answering.py`). Knows no engine but by its port.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from potstill.records import Chunk
from potstill.serve.answering import Work
from potstill.serve.corpus import citation
from potstill.serve.gateway import Gateway
from potstill.serve.openai_api import key_of
from potstill.serve.problems import ApiError, invalid
from potstill.serve.relay import answer
from potstill.serve.span_engine import NOTHING, PATH, Marked, SpanEngine, event_of
from potstill.serve.wire import QaRequest

LEAST = 1e-9  # probability that has a logarithm
PASSAGES = 3
"""Read for a question, the best by their words; `benchmarks/serve_spans.py` measures how many."""


def qa_routes(gateway: Gateway) -> APIRouter:
    """The route over a gateway."""
    router = APIRouter(prefix="/v1")

    @router.post("/qa")
    async def qa(asked: QaRequest, request: Request) -> Response:
        """Find the answer's words in a context, or in the documents."""
        if asked.model is not None:
            gateway.check_model(asked.model)
        if not isinstance(gateway.engine, SpanEngine):
            raise invalid(
                "This student writes its answers and marks none: ask it at "
                "POST /v1/chat/completions.",
                "model",
                "wrong_task",
            )
        chunks: list[Chunk] = []
        if asked.context is None:
            chunks = await _retrieved(gateway, asked)
        texts = [one.text for one in chunks] if asked.context is None else [asked.context]
        # What is read is counted before it is: the limits of a key are kept by it.
        reading = [{"role": "user", "content": gateway.ask(text, asked.question)} for text in texts]
        work = SpanWork(
            gateway,
            key_of(request),
            gateway.name,
            PATH,
            "qa.answer",
            {
                "max_tokens": 0,
                "question": asked.question,
                "passages": texts,
                "threshold": asked.no_answer_threshold,
            },
            reading or [{"role": "user", "content": asked.question}],
            retrieved=asked.context is None,
            question=asked.question,
            texts=texts,
            chunks=chunks,
        )
        request.state.work = work
        return await answer(work, request.receive, False, False, response_of)

    return router


async def _retrieved(gateway: Gateway, asked: QaRequest) -> list[Chunk]:
    if gateway.corpus is None:
        raise ApiError(
            400, "This server answers from no documents: give a context.", "no_documents", "context"
        )
    with gateway.tracing.part("retrieval"):
        return await gateway.corpus.best(asked.question, asked.top_k or PASSAGES)


@dataclass
class SpanWork(Work):
    """A question and the passages that are read for it. `chunks`: what they are of the documents;
    none beside a context."""

    texts: list[str] = field(kw_only=True)
    chunks: list[Chunk] = field(kw_only=True)
    marked: Marked | None = None

    @property
    def declined(self) -> bool:
        """A student that marks answers declines by marking none."""
        return not self.answer or super().declined

    @property
    def citations(self) -> list[dict[str, Any]] | None:
        """The passage that the answer stands in, if it is one of the documents'."""
        marked = self.marked
        if marked is None or marked.passage is None or not self.chunks:
            return []
        passage = self.chunks[marked.passage]
        place = {
            "answer_start": passage.start + marked.start,
            "answer_end": passage.start + marked.end,
        }
        return [citation(passage, "") | place]

    async def _engine_events(self) -> AsyncIterator[dict[str, Any]]:
        """One event: the answer. What is remembered for feedback is the passage that was decisive,
        before the question, as rows have it."""
        if self.texts:
            async for event in super()._engine_events():
                self._take(event["marked"])
                yield event
        else:
            self.variant = self.assigned
            self._take(NOTHING)
            yield event_of(NOTHING)

    def _take(self, marked: Marked) -> None:
        self.marked = marked
        self.sureness = [math.log(max(marked.score, LEAST))]
        decisive = self.texts[marked.passage or 0] if self.texts else ""
        self.messages = [{"role": "user", "content": self.gateway.ask(decisive, self.question)}]
        if marked.passage is not None and self.chunks:
            self.found = self.chunks[marked.passage]


def response_of(work: SpanWork, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer as the client sees it."""
    marked = work.marked
    assert marked is not None
    somewhere = marked.passage is not None
    return {
        "id": work.id,
        "object": work.kind,
        "created": work.created,
        "model": work.model,
        "answer": marked.answer,
        "score": marked.score,
        "start": marked.start if somewhere else None,
        "end": marked.end if somewhere else None,
        "no_answer": marked.no_answer,
        "citations": work.citations,
        "usage": work.usage,
    }
