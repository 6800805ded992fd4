"""One answer from beginning to end: admitted, queued, written by the engine, counted, remembered.

In: the engine's body of a request. Out: its events, as they come; `ApiError` where it is refused,
takes too long or breaks. All of it happens in one task, and to cancel that frees the engine's slot.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from potstill.inference.sizes import text_tokens
from potstill.records import Chunk
from potstill.serve.auth import ApiKey
from potstill.serve.confidence import ask_for, taken
from potstill.serve.corpus import citation
from potstill.serve.gateway import Answered, Gateway
from potstill.serve.limits import BYTES_A_TOKEN
from potstill.serve.problems import ApiError, invalid, unavailable
from potstill.serve.watch import Seen

PREFIXES = {"chat.completion": "chatcmpl", "text_completion": "cmpl", "qa.answer": "qa"}
ROUTES = {
    "chat.completion": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "qa.answer": "/v1/qa",
}
COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass
class Work:
    """What is to be answered, for whom, and what came of it.

    path: of the engine. kind: "chat.completion" or "text_completion". found: the passage that the
    answer is from; citations stay None where none was looked for.
    """

    gateway: Gateway
    key: ApiKey
    model: str
    path: str
    kind: str
    body: dict[str, Any]
    messages: list[dict[str, str]]
    retrieved: bool = False
    found: Chunk | None = None
    question: str = ""
    """The question alone, without the passage that was put before it; default: the last message."""
    id: str = ""
    created: int = 0
    text: list[str] = field(default_factory=list)
    usage: dict[str, int] | None = None
    queued_seconds: float = 0.0
    first_token_seconds: float | None = None
    finish: str = ""
    sureness: list[float] = field(default_factory=list)
    """Log-probabilities of the tokens written, where the engine was asked for them."""
    conversation: str = ""
    """What its first user turn says: what an assignment without keys is by."""
    assigned: str = ""
    variant: str = ""
    """The versions that it was given to, and that answered it."""
    unit: str = ""
    """What is assigned as one; "" without a candidate."""
    current: str = ""
    """The version that served when it came: a promotion may come before its end."""
    candidate: str = ""
    """The candidate that there was when it came."""

    def __post_init__(self) -> None:
        self.id = f"{PREFIXES[self.kind]}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        most = self.gateway.engine.context_tokens
        if most is not None and self.body["max_tokens"] > most:
            raise invalid(
                f"max_tokens is {self.body['max_tokens']}; prompt and answer together have room "
                f"for {most}.",
                "max_tokens",
            )
        self.question = self.question or self.messages[-1]["content"]
        self._shown: int | None = None
        if self.kind == "chat.completion":
            self._shown = ask_for(self.body, self.gateway.config.confidence)
        lanes = self.gateway.lanes
        if (canary := lanes.canary) is not None:
            self.unit = canary.unit(self.key.id, self.conversation, self.id)
            self.current, self.candidate = lanes.current.version, canary.lane.version
        self.assigned = lanes.assign(self.unit)

    @property
    def answer(self) -> str:
        """What was written so far."""
        return "".join(self.text)

    @property
    def declined(self) -> bool:
        """Whether the answer says that there is none."""
        return self.gateway.declines(self.answer)

    @property
    def citations(self) -> list[dict[str, Any]] | None:
        """None: nothing was looked for. Empty: nothing was found."""
        if not self.retrieved:
            return None
        return [citation(self.found, self.answer)] if self.found is not None else []

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The engine's events. Errors: ApiError."""
        gateway = self.gateway
        if gateway.draining:
            raise unavailable("The server is shutting down.", "shutting_down")
        prompt = sum(len(one["content"].encode()) for one in self.messages) // BYTES_A_TOKEN
        lease = gateway.limiter.admit(
            self.key.id, self.key.limits, prompt + self.body["max_tokens"]
        )
        arrived, outcome = time.monotonic(), "abandoned"
        try:
            with gateway.tracing.part("queue"):
                entered = await gateway.gate.enter()
            self.queued_seconds = entered - arrived
            try:
                with gateway.tracing.part("engine") as span:
                    async for event in self._written(arrived):
                        yield event
                    span.note(self.usage or {})
                outcome = "ok"
            except ApiError as error:
                outcome = error.code or str(error.status)
                raise
            finally:
                gateway.gate.leave(entered)
        finally:
            self._count()
            assert self.usage is not None
            lease.settle(self.usage["total_tokens"])
            gateway.trial.note(self, outcome, time.monotonic() - arrived)

    async def _written(self, arrived: float) -> AsyncIterator[dict[str, Any]]:
        gateway, last = self.gateway, 0.0
        try:
            async with asyncio.timeout(gateway.config.deadline_seconds):
                async for event in self._engine_events():
                    if event.get("usage"):
                        # Not how much was in the cache: that tells of other people's prompts.
                        self.usage = {name: int(event["usage"].get(name, 0)) for name in COUNTED}
                    if event["choices"]:
                        self._look(event["choices"][0])
                    if event["choices"] and (piece := _piece(event["choices"][0])):
                        self.text.append(piece)
                        last = time.monotonic()
                        if self.first_token_seconds is None:
                            self.first_token_seconds = last - arrived
                    yield event
        except TimeoutError as error:
            raise ApiError(
                408,
                f"The answer took longer than {gateway.config.deadline_seconds:g} s.",
                "deadline_exceeded",
            ) from error
        self._observe(last - arrived)
        gateway.memory.keep(
            self.id,
            Answered(
                self.key.id,
                self.model,
                self.messages,
                self.answer,
                self.citations or [],
                self.variant,
            ),
        )
        if gateway.traffic is not None:
            gateway.traffic.note(self._seen(time.monotonic() - arrived))

    def _look(self, choice: dict[str, Any]) -> None:
        """How the answer ends and how sure it is."""
        self.finish = str(choice.get("finish_reason") or self.finish)
        if self.kind == "chat.completion":
            self.sureness += taken(choice, self._shown)

    def _seen(self, seconds: float) -> Seen:
        """What is kept of it, once the words have become figures."""
        written = (self.usage or {}).get("completion_tokens") or text_tokens(self.answer)
        return Seen(
            self.id,
            time.time(),
            ROUTES[self.kind],
            self.model,
            self.variant,
            self.key.id,
            self.question,
            self.retrieved or self.kind == "qa.answer",
            self.declined,
            written,
            sum(self.sureness) / len(self.sureness) if self.sureness else None,
            self.finish,
            seconds,
            self.first_token_seconds,
        )

    def _engine_events(self) -> AsyncIterator[dict[str, Any]]:
        return self.gateway.lanes.events(self)

    def _count(self) -> None:
        """The tokens that were used; estimated where an answer ended early or nobody said."""
        if self.usage is None:
            written = text_tokens(self.answer)
            read = sum(text_tokens(one["content"]) for one in self.messages) if self.text else 0
            self.usage = dict(zip(COUNTED, (read, written, read + written), strict=True))
        for name in ("prompt", "completion"):
            count = self.gateway.figures.tokens.labels(self.model, name)
            count.inc(self.usage[f"{name}_tokens"])

    def _observe(self, seconds: float) -> None:
        figures = self.gateway.figures
        figures.queued.labels(self.model).observe(self.queued_seconds)
        if self.first_token_seconds is not None:
            figures.first_token.labels(self.model).observe(self.first_token_seconds)
            more = (self.usage or {}).get("completion_tokens", 0) - 1
            if more > 0 and seconds > self.first_token_seconds:
                rate = more / (seconds - self.first_token_seconds)
                figures.rate.labels(self.model).observe(rate)


def _piece(choice: dict[str, Any]) -> str:
    return str(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
