"""How fast generation goes: rows and tokens a second, and the time that is left.

In: counts as replies come. Out: fields of progress events. Replies that were remembered from an
earlier run cost no time and are not counted. Knows nothing of what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Counts since the first reply that was really asked for. `total`: units of work in all."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self._clock = clock
        self._began = clock()
        self._started_at = 0.0
        self._fresh = False
        self._rows = self._tokens = 0

    def reply(self, tokens: int, fresh: bool, done: float) -> None:
        """A reply came; `fresh`: it was not remembered; `done` of `total` units lie behind."""
        if fresh and not self._fresh:
            self._fresh, self._started_at = True, done
        if not fresh and not self._fresh:
            self._began = self._clock()  # only what is asked for takes time
        if fresh:
            self._tokens += tokens

    def rows(self, count: int) -> None:
        """So many rows were accepted."""
        if self._fresh:
            self._rows += count

    def figures(self, done: float) -> dict[str, float]:
        """rows_per_second, tokens_per_second, seconds_left; empty until something was asked."""
        seconds = self._clock() - self._began
        if not self._fresh or seconds <= 0:
            return {}
        figures = {
            "rows_per_second": round(self._rows / seconds, 2),
            "tokens_per_second": round(self._tokens / seconds, 1),
        }
        if (went := done - self._started_at) > 0:
            figures["seconds_left"] = round(seconds / went * (self.total - done), 1)
        return figures
