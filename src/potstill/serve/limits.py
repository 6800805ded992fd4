"""What each key may use: requests and tokens a minute, requests at once.

In: a key's limits, and the time. Out: leave to go on, or 429 with the seconds to wait. A sliding
minute: in none, wherever it begins, is more admitted than the limit. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from potstill.serve.problems import busy

MINUTE = 60.0
BYTES_A_TOKEN = 3  # before the engine has counted; settled afterwards


@dataclass(frozen=True)
class KeyLimits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass
class Entry:
    """Something that was admitted: when, and how much."""

    time: float
    amount: int


class Window:
    """How much was admitted in the last minute."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()

    def used(self, now: float) -> int:
        """The sum of the last minute."""
        while self._entries and self._entries[0].time <= now - MINUTE:
            self._entries.popleft()
        return sum(one.amount for one in self._entries)

    def wait(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount` fits below `limit`; 0: it does now."""
        over = self.used(now) + min(amount, limit) - limit
        for one in self._entries:
            if over <= 0:
                break
            over -= one.amount
            if over <= 0:
                return one.time + MINUTE - now
        return 0.0

    def add(self, amount: int, now: float) -> Entry:
        """Note it."""
        entry = Entry(now, amount)
        self._entries.append(entry)
        return entry


@dataclass
class Account:
    """What one key uses."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


class Lease:
    """An admitted request of a key. `settle` it with the tokens that it took."""

    def __init__(self, account: Account, entry: Entry) -> None:
        self._account, self._entry = account, entry
        self._open = True

    def settle(self, tokens: int) -> None:
        """It is over. May be called twice."""
        if self._open:
            self._open = False
            self._account.running -= 1
            self._entry.amount = tokens


class Limiter:
    """The accounts of all keys, in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts: dict[str, Account] = {}
        self._clock = clock

    def admit(self, key: str, limits: KeyLimits, tokens: int) -> Lease:
        """Admit a request that may take so many tokens.

        Errors: ApiError 429 names the limit; a refused request counts for nothing.
        """
        now = self._clock()
        account = self._accounts.setdefault(key, Account())
        if limits.concurrency is not None and account.running >= limits.concurrency:
            raise busy(
                f"This key may have {limits.concurrency} requests at once.", 1, "concurrency_limit"
            )
        for window, amount, limit, name in (
            (account.requests, 1, limits.requests_per_minute, "requests"),
            (account.tokens, tokens, limits.tokens_per_minute, "tokens"),
        ):
            if limit is not None and (wait := window.wait(amount, limit, now)) > 0:
                raise busy(f"This key may use {limit} {name} a minute.", wait, f"{name}_limit")
        account.requests.add(1, now)
        account.running += 1
        return Lease(account, account.tokens.add(tokens, now))
