"""Which version answers a request: the one that serves, or a candidate that gets a share.

In: an engine for each version, a share, requests. Out: the engine's events, from the version that a
request was assigned to. A candidate that fails costs no request: what it has not begun is answered
by the version that serves, and it is asked no more until the service is started again. A promotion
or rollback is taken while requests run: the new engine is started beside the old one, new requests
go to it, and the old one ends when its last answer is written. Knows no HTTP and no run.

Assignment is by a seeded hash, so it needs no memory and is the same after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from potstill.errors import PotstillError
from potstill.serve.engine import Engine, Tell
from potstill.serve.problems import ApiError
from potstill.serve.versions import Serving, Versions

Assign = Literal["key", "request"]
LOOK_SECONDS = 1.0
POLL_SECONDS = 0.05
OpenVersion = Callable[[Serving], Engine]
"""The engine of a version, not started. Errors: PotstillError if it cannot be served."""


class Asked(Protocol):
    """What a lane must know of a request. assigned: the version that it was given to; variant:
    the one that answers it, which is written here."""

    path: str
    body: dict[str, Any]
    assigned: str
    variant: str


@dataclass
class Lane:
    """A version and its engine. file: which exported file it has loaded; "": the run's default.
    busy: requests that it works on."""

    version: str
    engine: Engine
    file: str = ""
    busy: int = 0


@dataclass(frozen=True)
class Canary:
    """A candidate beside the version that serves.

    share: of the units that go to it, 0 to 1. assign: key: all requests of a key, or without keys
    of a conversation, go to one version; request: each is drawn for itself.
    """

    lane: Lane
    share: float
    assign: Assign = "key"
    seed: int = 0

    def takes(self, unit: str) -> bool:
        """Whether that unit is the candidate's: the hash of seed and unit, as a number of [0, 1),
        is below the share."""
        digest = hashlib.sha256(f"{self.seed}:{unit}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self.share

    def unit(self, key: str, conversation: str, response: str) -> str:
        """What is assigned as one."""
        if self.assign == "request":
            return response
        return key or hashlib.sha256(conversation.encode()).hexdigest()[:16]


class Lanes:
    """The engines of one service. switched: told the lane that serves from now on."""

    def __init__(
        self,
        current: Lane,
        canary: Canary | None = None,
        *,
        tell: Tell = lambda *_, **__: None,
        switched: Callable[[Lane], None] = lambda lane: None,
        drain_seconds: float = 120.0,
    ) -> None:
        self.current, self.canary = current, canary
        self._tell, self._switched, self._drain_seconds = tell, switched, drain_seconds
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def candidate_ready(self) -> bool:
        """Whether a candidate takes requests now."""
        return self.canary is not None and self.canary.lane.engine.ready

    def assign(self, unit: str) -> str:
        """The version that a request of that unit is given to."""
        canary = self.canary
        return canary.lane.version if canary and canary.takes(unit) else self.current.version

    async def start(self) -> None:
        """Start the engines. Errors: ModelError."""
        await self.current.engine.start()
        if self.canary is not None:
            await self.canary.lane.engine.start()

    async def stop(self) -> None:
        """End them all; those that are being left too."""
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self.current.engine.stop()
        if self.canary is not None:
            await self.canary.lane.engine.stop()

    async def events(self, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """The events of the engine that it is assigned to. Errors: ApiError."""
        canary, begun = self.canary, False
        if canary is not None and asked.assigned == canary.lane.version:
            try:
                async for event in self._of(canary.lane, asked):
                    begun = True
                    yield event
                return
            except ApiError as error:
                if error.status < 500:
                    raise
                self._drop(canary, error.message)
                if begun:
                    raise
        async for event in self._of(self.current, asked):
            yield event

    async def _of(self, lane: Lane, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        asked.variant = lane.version
        lane.busy += 1
        try:
            body = asked.body | {"model": lane.engine.model}
            async for event in lane.engine.upstream.events(asked.path, body):
                yield event
        finally:
            lane.busy -= 1

    def _drop(self, canary: Canary, reason: str) -> None:
        """A candidate that failed takes no more requests."""
        if self.canary is canary:
            self.canary = None
            self._tell("candidate_out", version=canary.lane.version, reason=reason)
            self._leave(canary.lane)

    async def take(self, serving: Serving, open_version: OpenVersion) -> None:
        """Let another version serve from now on. Where it cannot be, the one that serves stays."""
        canary, before = self.canary, self.current
        try:
            if canary is not None and (canary.lane.version, canary.lane.file) == (
                serving.version,
                serving.file,
            ):
                lane, self.canary = canary.lane, None
            else:
                lane = Lane(serving.version, open_version(serving), serving.file)
                try:
                    await lane.engine.start()
                except BaseException:
                    await lane.engine.stop()
                    raise
        except (PotstillError, OSError) as error:
            self._tell("version_not_taken", version=serving.version, reason=str(error))
            return
        self.current = lane
        self._switched(lane)
        self._tell("version_taken", version=lane.version, before=before.version)
        self._leave(before)
        if self.canary is not None and self.canary.lane.version == lane.version:
            self._leave(self.canary.lane)  # another file of the same version
            self.canary = None

    def _leave(self, lane: Lane) -> None:
        task = asyncio.create_task(self._end(lane))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _end(self, lane: Lane) -> None:
        """Stop an engine when its last answer is written, or took too long."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._drain_seconds):
                    while lane.busy:
                        await asyncio.sleep(POLL_SECONDS)
        finally:
            await lane.engine.stop()


async def follow(
    lanes: Lanes, versions: Versions, open_version: OpenVersion, tell: Tell, every: float
) -> None:
    """Take each promotion and rollback, until it is cancelled. every: seconds between looks."""
    seen: tuple[int, int, int] | None = None
    while True:
        stamp = versions.stamp()
        if stamp != seen:
            seen = stamp
            try:
                serving = await asyncio.to_thread(versions.current)
            except PotstillError as error:
                tell("version_not_taken", reason=str(error))
            else:
                if serving.version != lanes.current.version:
                    await lanes.take(serving, open_version)
        await asyncio.sleep(every)
