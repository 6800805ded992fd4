"""Two models behind A and B, in an order that is drawn and told to nobody before the vote.

In: a question and two models. Out: pairs that wait for a vote. Knows no page and no engine.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from potstill.errors import UsageError
from potstill.records import short_id

MOST_OPEN = 100
"""Pairs that wait for a vote; the oldest are forgotten."""
LABELS = ("A", "B")


@dataclass
class Pair:
    """Two models behind A and B. models: in a fixed order; swapped: whether A is the second."""

    run: str
    row: str
    models: tuple[str, str]
    swapped: bool
    answered: set[str] = field(default_factory=set)

    def model(self, label: str) -> str:
        """Who is behind a label."""
        return self.models[LABELS.index(label) ^ self.swapped]


class Pairs:
    """The pairs of one studio that wait for a vote."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Pair] = OrderedDict()

    def begin(self, run: str, question: str, models: tuple[str, str]) -> str:
        """Draw an order; the id by which the page asks and votes."""
        identity = secrets.token_urlsafe(12)
        first, second = sorted(models)
        swapped = bool(secrets.randbits(1))
        row = short_id("asked", question.strip())
        self._open[identity] = Pair(run, row, (first, second), swapped)
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return identity

    def find(self, identity: str, run: str) -> Pair:
        """Errors: UsageError for a pair that was voted on, or is of another run."""
        found = self._open.get(identity)
        if found is None or found.run != run:
            raise UsageError("This vote is over.", "Ask once more.")
        return found

    def close(self, identity: str, run: str) -> Pair:
        """The pair, whose names may be told now. Errors: UsageError if not both have answered."""
        found = self.find(identity, run)
        if found.answered != set(LABELS):
            raise UsageError("Both have to answer before there is a vote.", "Ask once more.")
        return self._open.pop(identity)
