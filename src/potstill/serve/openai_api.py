"""OpenAI's routes: chat and plain completions, models, embeddings.

In: validated requests (`wire.py`). Out: responses of the student (`relay.py`). The model's name
with `:documents` behind it answers the last question from the run's documents, put to the student
in the words that it was taught, and says where they stand. Knows no engine.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from potstill.inference.sizes import text_tokens
from potstill.serve.answering import Work
from potstill.serve.auth import ApiKey
from potstill.serve.gateway import DOCUMENTS, Gateway
from potstill.serve.problems import ApiError, busy, invalid
from potstill.serve.relay import answer
from potstill.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest

EMBEDDING_JOBS = 4


def routes(gateway: Gateway) -> APIRouter:
    """The routes over a gateway."""
    router = APIRouter(prefix="/v1")
    most = gateway.config.answer_tokens
    embedding = asyncio.Semaphore(EMBEDDING_JOBS)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names under which the student can be asked."""
        names = gateway.models + ([gateway.embedding_model] if gateway.embedding_model else [])
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """One of them."""
        if model != gateway.embedding_model:
            gateway.check_model(model)
        return _model(model)

    @router.post("/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        gateway.check_model(asked.model)
        messages = [{"role": _role(one.role), "content": one.text} for one in asked.messages]
        conversation = next((one.text for one in asked.messages if one.role == "user"), "")
        retrieved, found = asked.model.endswith(DOCUMENTS), None
        if retrieved:
            found = await _retrieve(gateway, messages)
        work = Work(
            gateway,
            key_of(request),
            asked.model,
            "/v1/chat/completions",
            "chat.completion",
            asked.body(gateway.engine.local, most_of(gateway, most), messages),
            messages,
            retrieved,
            found,
            asked.messages[-1].text,
            conversation=conversation,
        )
        request.state.work = work
        return await answer(work, request.receive, bool(asked.stream), asked.wants_usage)

    @router.post("/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Go on with a text, without a chat template."""
        gateway.check_model(asked.model)
        if asked.model.endswith(DOCUMENTS):
            raise invalid(
                f"Answers from documents are for /v1/chat/completions; here is {gateway.name}.",
                "model",
            )
        work = Work(
            gateway,
            key_of(request),
            asked.model,
            "/v1/completions",
            "text_completion",
            asked.body(gateway.engine.local, most_of(gateway, most)),
            [{"role": "user", "content": asked.text}],
            conversation=asked.text,
        )
        request.state.work = work
        return await answer(work, request.receive, bool(asked.stream), asked.wants_usage)

    @router.post("/embeddings")
    async def embeddings(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
        """Texts as unit vectors, where the service has an encoder."""
        index = gateway.corpus.index if gateway.corpus else None
        if gateway.embedding_model is None or index is None:
            raise ApiError(
                404,
                "There is no embedding model here; the server was started without --encoder.",
                "model_not_found",
                "model",
            )
        if asked.model != gateway.embedding_model:
            raise ApiError(
                404,
                f"There is no embedding model {asked.model[:80]!r}; there is "
                f"{gateway.embedding_model}.",
                "model_not_found",
                "model",
            )
        key = key_of(request)
        tokens = sum(text_tokens(text) for text in asked.texts)
        lease = gateway.limiter.admit(key.id, key.limits, tokens)
        try:
            if embedding.locked():
                raise busy("Too many texts are being embedded already.", 1, "queue_full")
            async with embedding:
                vectors = await asyncio.to_thread(index.vectors, asked.texts)
        finally:
            lease.settle(tokens)
        width = vectors.shape[1]
        if asked.dimensions not in (None, width):
            raise invalid(f"The vectors have {width} dimensions.", "dimensions")
        plain = asked.encoding_format == "float"
        data = [
            {
                "object": "embedding",
                "index": number,
                "embedding": row.tolist()
                if plain
                else base64.b64encode(row.astype("<f4").tobytes()).decode(),
            }
            for number, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": asked.model, "usage": usage}

    return router


def key_of(request: Request) -> ApiKey:
    """Who asks."""
    key: ApiKey = request.state.key
    return key


def most_of(gateway: Gateway, most: int) -> int:
    """Tokens of an answer that names no number."""
    room = gateway.engine.context_tokens
    return most if room is None else min(most, room)


async def _retrieve(gateway: Gateway, messages: list[dict[str, str]]) -> Any:
    """Put the best passage before the last question, as the student was taught; returns it."""
    assert gateway.corpus is not None
    if messages[-1]["role"] != "user":
        raise invalid("The last message has to be the user's question.", "messages")
    question = messages[-1]["content"]
    with gateway.tracing.part("retrieval"):
        passage = await gateway.corpus.search(question)
    if passage is not None:
        messages[-1]["content"] = gateway.ask(passage.text, question)
    return passage


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "potstill"}
