"""Limits a minute, kept from this side: how long to wait until so much more may be sent.

In: amounts (requests or tokens) with the time at which they are sent. Out: seconds to wait.
Pure: the time is handed in. Knows no endpoint and no key.

Two rules at once. A token bucket paces what is sent, so that it flows evenly and no more than two
seconds' worth go at once: endpoints cut a limit of 600 a minute into 10 a second as they like. A
sliding window makes it strict: in no minute, wherever it begins, is the limit passed, which the
bucket alone does not promise for requests of different size. The window is a second longer than a
minute, as much as one request may take longer to arrive than a later one; that costs 1.6%.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SLACK = 1.0
WINDOW = 60.0 + SLACK
BURST_SECONDS = 2.0  # so much is caught up with after a pause


@dataclass
class Entry:
    """One thing that was sent: when, and how much of the limit it takes."""

    time: float
    amount: float
    counts: bool = True
    """Whether it was sent within the last minute."""


class Limit:
    """At most `per_minute` in every minute. None: no limit."""

    def __init__(self, per_minute: float | None, now: float = 0.0) -> None:
        self.per_minute = per_minute
        rate = (per_minute or 0.0) / WINDOW
        self._rate = rate
        self._full = max(1.0, rate * BURST_SECONDS)
        self._level = self._full
        self._filled = now
        self._sent: deque[Entry] = deque()
        self._sum = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be sent; 0 if it may now. What is larger than the whole
        limit goes when nothing else was sent for a minute."""
        if self.per_minute is None:
            return 0.0
        self._pass(now)
        # A large request goes when the bucket is full, and leaves it in debt.
        short = min(amount, self._full) - self._level
        paced = short / self._rate if short > 1e-9 else 0.0
        return max(paced, self._wait_for_window(min(amount, self.per_minute), now))

    def take(self, amount: float, now: float) -> Entry:
        """Note that `amount` is sent now; `wait` said that it may."""
        entry = Entry(now, amount)
        if self.per_minute is not None:
            self._pass(now)
            self._level -= amount
            self._sent.append(entry)
            self._sum += amount
        return entry

    def settle(self, entry: Entry, amount: float) -> None:
        """It turned out to be `amount`: a reply is shorter than it might have been."""
        if self.per_minute is None or amount == entry.amount:
            return
        self._level += entry.amount - amount
        if entry.counts:
            self._sum += amount - entry.amount
        entry.amount = amount

    def _pass(self, now: float) -> None:
        # What was given back may fill the bucket beyond its rim: it was never used.
        earned = max(0.0, now - self._filled) * self._rate
        self._level = max(self._level, min(self._full, self._level + earned))
        self._filled = max(now, self._filled)
        while self._sent and self._sent[0].time <= now - WINDOW:
            old = self._sent.popleft()
            old.counts = False
            self._sum -= old.amount
        if not self._sent:
            self._sum = 0.0

    def _wait_for_window(self, amount: float, now: float) -> float:
        assert self.per_minute is not None
        over = self._sum + amount - self.per_minute
        if over <= 1e-9:
            return 0.0
        for entry in self._sent:
            over -= entry.amount
            if over <= 1e-9:
                return max(0.0, entry.time + WINDOW - now)
        return WINDOW


class Adaptive:
    """How many requests at once: one more for each round that went well, half after a refusal.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989): the rule that shares a line
    of unknown width without choking it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.allowed = float(most)
        self._cut = float("-inf")

    def __int__(self) -> int:
        return int(self.allowed)

    def went_well(self) -> None:
        """A reply came."""
        self.allowed = min(float(self.most), self.allowed + 1.0 / self.allowed)

    def overloaded(self, sent: float, now: float) -> None:
        """A request that was sent then met an overloaded endpoint. What was sent before the last
        cut says nothing new."""
        if sent >= self._cut:
            self.allowed = max(1.0, self.allowed / 2)
            self._cut = now
