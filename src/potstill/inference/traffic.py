"""Which request goes when, with which key, and what is done about its failure.

In: requests, a key pool, a way to send one body. Out: replies as they come; one TeacherError when
the endpoint is clearly of no use. Runs in one asyncio loop. Knows no HTTP client.

A request is never given up for a limit: it waits. It is sent again after a failure of the endpoint,
`max_retries` times. It is refused alone where the endpoint finds fault with it alone. And where
nothing more is to be expected of the endpoint, the whole call ends, so that what is not answered
yet is asked by a later run instead of being lost.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import TeacherError
from potstill.inference.answers import Answer, Failure, shorten
from potstill.inference.base import Reply, Request
from potstill.inference.dialect import Dialect
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.keys import Key, KeyPool, Lease, backoff
from potstill.inference.sizes import PromptSizes, text_tokens

HOPELESS = 3  # failures, and no reply ever: nobody is there
REFUSED = 20  # requests, and no reply ever: it is not about one of them
GONE = 3  # requests given up in a row, by an endpoint that had answered
PATIENCE = 900.0  # seconds without a reply, while every key is told to wait
LONGEST_WAIT = 600.0  # a longer one is for another day

Send = Callable[[dict[str, Any], Key], Awaitable[Answer | Failure]]


@dataclass(order=True)
class Job:
    """A request that is not answered yet."""

    ready: float
    position: int
    request: Request = field(compare=False)
    failures: int = field(default=0, compare=False)


class Traffic:
    """All that is known of an endpoint while it is open."""

    def __init__(
        self,
        endpoint: EndpointConfig,
        dialect: Dialect,
        pool: KeyPool,
        send: Send,
        warn: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint, self.dialect, self.pool = endpoint, dialect, pool
        self.sizes = PromptSizes()
        self._send, self._warn, self._clock, self._chance = send, warn, clock, chance
        self._open: dict[int, Lease] = {}
        self._replies = self._failures = self._refused = self._given_up = 0
        self._last_reply = clock()
        self._warned_of_usage = False
        self._wake = asyncio.Event()
        self.unread = 0
        """Replies that nobody has taken yet: they count as running, so that a kill loses no more
        than what may run at once."""

    async def run(
        self, requests: Iterator[Request], deliver: Callable[[tuple[int, Reply]], None]
    ) -> None:
        """Answer all requests. Errors: TeacherError if the endpoint is of no use."""
        source = ((position, request) for position, request in enumerate(requests))
        again: list[Job] = []
        fresh: Job | None = None
        running: set[asyncio.Task[Job | None]] = set()
        self._last_reply = self._clock()
        if not self.pool.live:
            raise self._no_keys(self.pool.keys[0].out)
        try:
            while True:
                for task in [one for one in running if one.done()]:
                    running.remove(task)
                    if (job := task.result()) is not None:
                        heapq.heappush(again, job)
                self._wake.clear()
                now = self._clock()
                wait: float | None = None
                if len(running) + self.unread < self.pool.width:
                    job = heapq.heappop(again) if again and again[0].ready <= now else fresh
                    if job is None:
                        job = fresh = _next(source, now)
                    if job is not None:
                        lease = self.pool.lease(self._cost(job.request), now)
                        if isinstance(lease, Lease):
                            fresh = None if job is fresh else fresh
                            task = asyncio.create_task(self._work(job, lease, deliver))
                            task.add_done_callback(lambda _: self._wake.set())
                            running.add(task)
                            continue
                        wait = lease
                        if job is not fresh:
                            heapq.heappush(again, job)
                    elif not again and not running:
                        return
                    if again and again[0].ready > now:
                        soon = again[0].ready - now
                        wait = soon if wait is None else min(wait, soon)
                await self._pause(wait)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def taken(self) -> None:
        """Somebody has taken a reply."""
        self.unread -= 1
        self._wake.set()

    async def _pause(self, wait: float | None) -> None:
        """Until something happens, or so many seconds."""
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _cost(self, request: Request) -> int:
        return self.sizes.tokens(request) + request.max_tokens

    async def _work(
        self, job: Job, lease: Lease, deliver: Callable[[tuple[int, Reply]], None]
    ) -> Job | None:
        """Send a request once; returns it if it is to be sent again."""
        spoken = self.dialect.version
        body = self.dialect.body(job.request)
        self._open[id(lease)] = lease
        result: Answer | Failure | None = None
        try:
            result = await self._send(body, lease.key)
        finally:
            del self._open[id(lease)]
            self.pool.give_back(lease, self._took(result))
        if isinstance(result, Answer):
            reply = self._reply(job, result, lease)
        else:
            reason = shorten(self.pool.scrub(result.reason))
            failed = self._failed(job, lease, result, reason, spoken, body)
            if failed is None:
                return job
            reply = failed
        self.unread += 1
        deliver((job.position, reply))
        return None

    def _took(self, result: Answer | Failure | None) -> float | None:
        """Tokens that count against a limit; None: nobody knows."""
        if isinstance(result, Answer) and result.prompt_tokens is not None:
            return result.prompt_tokens + (result.completion_tokens or 0)
        refused = isinstance(result, Failure) and result.kind != "retry"
        return 0.0 if refused else None

    def _reply(self, job: Job, answer: Answer, lease: Lease) -> Reply:
        now = self._clock()
        self.pool.went_well(lease)
        self._replies += 1
        self._given_up = 0
        self._last_reply = now
        text = self.pool.scrub_reply(answer.text)
        prompt, written = answer.prompt_tokens, answer.completion_tokens
        if prompt is not None:
            self.sizes.learn(job.request, prompt)
        if (prompt is None or written is None) and not self._warned_of_usage:
            self._warned_of_usage = True
            self._warn(
                f"{self.dialect.model} does not say how many tokens a reply took; tokens and "
                "costs are estimated."
            )
        if prompt is None:
            prompt = text_tokens(job.request.prompt_text)
        if written is None:
            written = text_tokens(text)
        return Reply(text, answer.finish_reason, prompt, written, now - lease.sent)

    def _failed(
        self,
        job: Job,
        lease: Lease,
        failure: Failure,
        reason: str,
        spoken: int,
        body: dict[str, Any],
    ) -> Reply | None:
        """None: send it again. Errors: TeacherError if that is of no use."""
        now = self._clock()
        kind = failure.kind
        if kind == "useless" and self._replies:
            kind = "retry"  # it did answer; something stands before it for a while
        if kind == "useless":
            raise self._useless(reason)
        if kind == "key":
            self._key_failed(lease, reason)
            return None
        if kind == "busy":
            self._busy(lease, now, failure.retry_after, reason)
            job.ready = now
            return None
        if kind == "complaint":
            note = self.dialect.adapt(spoken, body, reason)
            if note is not None:
                if note:
                    self._warn(note)
                job.ready = now
                return None
        if kind != "retry":
            self._refused += 1
            if not self._replies and self._refused >= REFUSED:
                raise self._refuses_all(reason)
            return Reply(reason, "error", 0, 0, now - lease.sent)
        self.pool.overloaded(lease, now)
        self._failures += 1
        job.failures += 1
        last = job.failures > self.endpoint.max_retries
        alone = not any(other.sent <= lease.sent for other in self._open.values())
        if not self._replies and (last or (self._failures >= HOPELESS and alone)):
            raise self._useless(reason)
        if not last:
            job.ready = now + backoff(job.failures, self._chance())
            return None
        self._given_up += 1
        if self._given_up >= GONE:
            raise self._stopped(f"answers no more: {reason}")
        return Reply(reason, "error", 0, 0, now - lease.sent)

    def _key_failed(self, lease: Lease, reason: str) -> None:
        if not lease.key.variable:
            raise TeacherError(
                f"{self.endpoint.base_url} wants a key: {reason}.",
                "Put it into an environment variable and name that in generate.endpoint.keys.",
            )
        self.pool.take_out(lease, reason)
        if not self.pool.live:
            raise self._no_keys(reason)

    def _no_keys(self, reason: str) -> TeacherError:
        names = ", ".join(key.variable for key in self.pool.keys)
        return TeacherError(
            f"{self.endpoint.base_url} takes none of the keys in {names}: {reason}.",
            "Set a key that is valid and run again; what is answered already is kept.",
        )

    def _busy(self, lease: Lease, now: float, retry_after: float | None, reason: str) -> None:
        self.pool.too_fast(lease, now, retry_after)
        pauses = [key.paused_until - now for key in self.pool.live]
        if pauses and min(pauses) > LONGEST_WAIT:
            raise self._stopped(f"asks to wait for {min(pauses) / 60:.0f} minutes: {reason}")
        if now - self._last_reply > PATIENCE:
            minutes = (now - self._last_reply) / 60
            raise self._stopped(f"has only said for {minutes:.0f} minutes: {reason}")

    def _useless(self, reason: str) -> TeacherError:
        return TeacherError(
            f"{self.dialect.model} at {self.endpoint.base_url} cannot be asked: {reason}.",
            "Check the address (endpoint.base_url or --judge-url; it usually ends in /v1), the "
            "model's name after openai:, and whether the server runs.",
        )

    def _refuses_all(self, reason: str) -> TeacherError:
        return TeacherError(
            f"{self.dialect.model} at {self.endpoint.base_url} refuses every request: {reason}.",
            "Check generate.endpoint.structured and extra, and whether prompts of this length fit.",
        )

    def _stopped(self, what: str) -> TeacherError:
        return TeacherError(
            f"{self.endpoint.base_url} {what}.",
            f"{self._replies} replies of this run are kept; run again later and it goes on from "
            "there.",
        )


def _next(source: Iterator[tuple[int, Request]], now: float) -> Job | None:
    item = next(source, None)
    return None if item is None else Job(now, item[0], item[1])
