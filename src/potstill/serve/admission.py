"""Who goes to the engine now, who waits, and who is told to come back later.

In: requests, one a client. Out: a place for each that is admitted; 429 with `Retry-After` for the
others. First come, first served. Runs in one event loop. Knows no engine and no key.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from potstill.serve.problems import busy

SMOOTHING = 0.2  # weight of the newest request in the mean time of one


class Gate:
    """`width` places, and a queue of at most `longest` that wait for at most `seconds`."""

    def __init__(
        self,
        width: int,
        longest: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.width, self.longest, self.seconds = width, longest, seconds
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = clock
        self._mean = 1.0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not one.done() for one in self._waiting)

    def wait_seconds(self) -> float:
        """About how long a request that came now would wait."""
        return self._mean * (self.waiting + 1) / self.width

    async def enter(self) -> float:
        """Take a place, now or when one is free; returns when it was taken, for `leave`.

        Errors: ApiError 429 if the queue is full, or nothing came free in time.
        """
        if self.running < self.width and not self.waiting:
            self.running += 1
            return self._clock()
        if self.waiting >= self.longest:
            raise busy("Too many requests wait already.", self.wait_seconds(), "queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it was given a place in the moment in which it gave up
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise busy(
                    f"No place came free within {self.seconds:g} s.",
                    self.wait_seconds(),
                    "queue_timeout",
                ) from error
            raise
        return self._clock()

    def leave(self, entered: float) -> None:
        """Give the place back."""
        self._mean += SMOOTHING * (self._clock() - entered - self._mean)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
