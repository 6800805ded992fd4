"""Brings an answer to a client that may be slow, or gone.

In: work. Out: one JSON object, or server-sent events. The engine is read as fast as it writes,
whatever the client does: who reads a byte a second holds a connection, but no slot. A client that
goes away cancels its work at once; one that takes nothing for `stall_seconds` is let go.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from potstill.serve.answering import Work
from potstill.serve.openai_shapes import done, event_of, whole
from potstill.serve.problems import ApiError

CLIENT_CLOSED = 499
"""Written into the log for a client that went away; nobody receives it."""


async def answer(
    work: Work,
    receive: Receive,
    stream: bool,
    wants_usage: bool,
    shape: Callable[[Any, list[dict[str, Any]]], dict[str, Any]] = whole,
) -> Response:
    """The response; `shape`: of one that is not streamed. Errors: ApiError if it is refused before
    its first event."""
    reading, handed_on = Reading(work), False
    gone = asyncio.create_task(_gone(receive))
    try:
        begun = asyncio.ensure_future(reading.some.wait()) if stream else reading.task
        await _first(gone, begun)
        if reading.task.done():
            await reading.task
        elif gone.done():
            work.gateway.figures.abandoned.labels(work.model).inc()
            return Response(status_code=CLIENT_CLOSED)
        if not stream:
            return JSONResponse(shape(work, reading.events), headers=_variant(work))
        handed_on = True
        return EventStream(reading, gone, work, wants_usage)
    finally:
        if not handed_on:
            gone.cancel()
            await reading.stop()


class Reading:
    """Reads the engine's events in a task of its own."""

    def __init__(self, work: Work) -> None:
        self.events: list[dict[str, Any]] = []
        self.some = asyncio.Event()
        self._work = work
        self.task = asyncio.create_task(self._read())
        self.task.add_done_callback(lambda _: self.some.set())

    async def _read(self) -> None:
        async for event in self._work.events():
            self.events.append(event)
            self.some.set()

    async def stop(self) -> None:
        """Cancel, and wait until the slot is free."""
        self.task.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await self.task

    async def new(self) -> list[dict[str, Any]]:
        """The events that came since; empty: it is over. Errors: ApiError."""
        await self.some.wait()
        self.some.clear()
        events, self.events = self.events, []
        if self.task.done():
            self.some.set()
            if not events:
                await self.task
        return events


class EventStream(Response):
    """Server-sent events, several in one write where the client is slower than the engine."""

    media_type = "text/event-stream"

    def __init__(
        self, reading: Reading, gone: asyncio.Task[None], work: Work, wants_usage: bool
    ) -> None:
        kept = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=kept | _variant(work))
        del self.headers["content-length"]
        self._reading, self._gone, self._work = reading, gone, work
        self._wants_usage = wants_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until all is said or the client is gone."""
        sending = asyncio.create_task(self._send(send))
        try:
            await _first(self._gone, sending)
            if sending.done():
                await sending
            else:
                self._work.gateway.figures.abandoned.labels(self._work.model).inc()
        finally:
            sending.cancel()
            self._gone.cancel()
            await self._reading.stop()
            with suppress(asyncio.CancelledError, TimeoutError):
                await sending

    async def _send(self, send: Send) -> None:
        stall = self._work.gateway.config.stall_seconds
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        last = False
        while not last:
            try:
                events = await self._reading.new()
                last = not events
                lines = [done(self._work, self._wants_usage)] if last else []
                lines += [event_of(self._work, event) for event in events]
            except ApiError as error:  # too late for a status: the stream says it
                lines, last = [f"data: {json.dumps(error.body)}\n\n"], True
                self._work.gateway.figures.errors.labels(error.code or "").inc()
            content = "".join(lines).encode()
            message = {"type": "http.response.body", "body": content, "more_body": not last}
            async with asyncio.timeout(stall):
                await send(message)


def _variant(work: Work) -> dict[str, str]:
    """The header that says which version answers."""
    return {"X-Variant": work.variant} if work.variant else {}


async def _first(*tasks: asyncio.Future[Any]) -> None:
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        raise


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
