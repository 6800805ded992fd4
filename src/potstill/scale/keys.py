"""An endpoint's keys, shared by all workers: one actor lends them, so that limits hold over all.

In: an endpoint's config. Out: in the actor, the one `KeyPool` with its limits and its clock; in
each worker a `SharedPool` of the same form, whose decisions are the actor's. A key's value never
goes through Ray: each worker reads it from its own environment, the actor knows names only.

A worker waits for the actor, and all its requests with it, so it is asked no more than needed: a
key without limits a minute that comes back while the next request is due goes with that.
Knows no client and no request.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.errors import ModelError, UnavailableError
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.keys import Key, KeyPool, Lease, open_pool
from potstill.inference.limits import Entry

LOOK_AGAIN = 0.05  # seconds, where only another worker's reply frees a key
HELD_SECONDS = 0.02  # so long a key that came back waits for the worker's next request
LENT_SECONDS = 3.0  # after so long it goes back to the actor, which may have lent it to others
NAME_ONLY = "held-by-the-workers"


class KeyDesk:
    """Lends keys to all workers. An actor of Ray. Times are its own, for workers' clocks differ.

    variables: those that hold a key, by the names that the endpoint gives.
    """

    def __init__(self, endpoint: Mapping[str, Any], variables: list[str]) -> None:
        self.endpoint = EndpointConfig.model_validate(endpoint)
        self._said: list[str] = []
        # Each name stands for its key here: names differ where keys do.
        held = {name: f"{NAME_ONLY}-{name}" for name in variables}
        self._pool = open_pool(
            self.endpoint, time.monotonic(), random.random, self._said.append, held
        )
        self._lent: dict[int, tuple[int, Lease]] = {}
        self._count = 0

    def begin(self, worker: int) -> dict[str, Any]:
        """A worker begins; if one of its name had died, what was lent to that is free again."""
        for name, (holder, _) in list(self._lent.items()):
            if holder == worker:
                self.give_back(name, None)
        return self.state()

    def lease(self, worker: int, tokens: float) -> dict[str, Any]:
        """A key's variable and the lease's name, or how long to wait; and how things stand."""
        now = time.monotonic()
        self._take_back_of_the_dead(now)
        given = self._pool.lease(tokens, now)
        if not isinstance(given, Lease):
            return {"wait": LOOK_AGAIN if given is None else given, **self.state()}
        self._count += 1
        self._lent[self._count] = (worker, given)
        return {"lease": self._count, "variable": given.key.variable, **self.state()}

    def give_back(self, name: int, tokens: float | None) -> None:
        """As `KeyPool`; a lease that was taken back already is none any more."""
        if held := self._lent.pop(name, None):
            self._pool.give_back(held[1], tokens)

    def tell(self, variable: str, what: str, age: float, argument: Any = None) -> dict[str, Any]:
        """What came of a request that was sent `age` seconds ago with that key."""
        now = time.monotonic()
        key = next(one for one in self._pool.keys if one.variable == variable)
        lease = Lease(key, now - age, Entry(now, 0.0), Entry(now, 0.0))
        if what == "went_well":
            self._pool.went_well(lease)
            return {}  # nobody waits for it
        if what == "too_fast":
            self._pool.too_fast(lease, now, argument)
        elif what == "overloaded":
            self._pool.overloaded(lease, now)
        else:
            assert what == "take_out"
            self._pool.take_out(lease, argument)
        return self.state()

    def state(self) -> dict[str, Any]:
        """What workers must know of all keys, and what the user should; the latter once."""
        now = time.monotonic()
        said = list(self._said)
        self._said.clear()
        return {
            "width": self._pool.width,
            "out": {key.variable: key.out for key in self._pool.keys},
            "paused": {key.variable: key.paused_until - now for key in self._pool.keys},
            # Nothing is to be mended by a request that goes well.
            "calm": all(
                key.out or (not key.refusals and int(key.width) == key.width.most)
                for key in self._pool.keys
            ),
            "said": said,
        }

    def _take_back_of_the_dead(self, now: float) -> None:
        """A worker that never begins again gives nothing back; its requests are over by then."""
        own = self.endpoint
        longest = own.timeout_seconds + own.connect_seconds + LENT_SECONDS
        for name, (_, lease) in list(self._lent.items()):
            if now - lease.sent > longest:
                self.give_back(name, None)


class Caller(Protocol):
    """A way to call an actor's methods, in the order in which they are called."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call it and wait for what it returns."""

    def say(self, method: str, *arguments: Any) -> None:
        """Call it and do not wait."""


@dataclass
class _Lent:
    """What the actor lent: its name for it, which key, since when."""

    name: int
    key: Key
    since: float


class SharedPool(KeyPool):
    """The keys as a worker sees them. desk: the actor. A lease is waited for, and so is what an
    endpoint asks for in anger; what went well is only said, and only where it matters."""

    def __init__(
        self, keys: list[Key], worker: int, warn: Callable[[str], None], desk: Caller
    ) -> None:
        super().__init__(keys, random.random, warn)
        self._worker, self._desk = worker, desk
        self._lent: dict[int, _Lent] = {}
        self._held: list[_Lent] = []
        self._width, self._calm = 1, False
        self._learn(desk.ask("begin", worker))

    @property
    def width(self) -> int:
        """How many requests may run at once, in all workers together."""
        return self._width

    def lease(self, tokens: float, now: float) -> Lease | float | None:
        """A key, or the seconds until there may be one: never None, as others give keys back."""
        lent = self._of_before(now)
        if lent is None:
            found = self._learn(self._desk.ask("lease", self._worker, tokens))
            if "wait" in found:
                return float(found["wait"])
            lent = _Lent(found["lease"], self._key(found["variable"]), now)
        lease = Lease(lent.key, now, Entry(now, 1), Entry(now, tokens))
        self._lent[id(lease)] = lent
        return lease

    def give_back(self, lease: Lease, tokens: float | None = None) -> None:
        """The request is done."""
        lent = self._lent.pop(id(lease))
        limited = any(one.per_minute is not None for one in (lease.key.requests, lease.key.tokens))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if limited or loop is None:
            self._desk.say("give_back", lent.name, tokens)
        else:
            self._held.append(lent)
            loop.call_later(HELD_SECONDS, self._let_go, lent)

    def went_well(self, lease: Lease) -> None:
        """A reply came."""
        if not self._calm:
            self._desk.say("tell", lease.key.variable, "went_well", 0.0)

    def _of_before(self, now: float) -> _Lent | None:
        """What came back a moment ago and may go with another request."""
        while self._held:
            lent = self._held.pop()
            if (
                now - lent.since < LENT_SECONDS
                and not lent.key.out
                and lent.key.paused_until <= now
            ):
                return lent
            self._desk.say("give_back", lent.name, None)
        return None

    def _let_go(self, lent: _Lent) -> None:
        if lent in self._held:
            self._held.remove(lent)
            self._desk.say("give_back", lent.name, None)

    def too_fast(self, lease: Lease, now: float, retry_after: float | None) -> float:
        """The endpoint wants this key to wait; returns for how long it does."""
        self._tell(lease, "too_fast", now, retry_after)
        return max(0.0, lease.key.paused_until - now)

    def overloaded(self, lease: Lease, now: float) -> None:
        """The endpoint failed or took too long: fewer at once."""
        self._tell(lease, "overloaded", now)

    def take_out(self, lease: Lease, reason: str) -> None:
        """This key is of no use any more, for any worker."""
        self._tell(lease, "take_out", time.monotonic(), reason)

    def _tell(self, lease: Lease, what: str, now: float, argument: Any = None) -> None:
        age = now - lease.sent
        self._learn(self._desk.ask("tell", lease.key.variable, what, age, argument))

    def _key(self, variable: str) -> Key:
        return next(key for key in self.keys if key.variable == variable)

    def _learn(self, found: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        self._width, self._calm = found["width"], found["calm"]
        for key in self.keys:
            key.out = found["out"][key.variable]
            key.paused_until = now + found["paused"][key.variable]
        for text in found["said"]:
            self._warn(text)
        return found


def variables_here(
    endpoint: EndpointConfig, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The variables that hold a key of the endpoint in this environment, each key once.

    Errors: UnavailableError if none does, ModelError.
    """
    pool = open_pool(endpoint, 0.0, random.random, lambda text: None, environment)
    return [key.variable for key in pool.keys if key.variable]


def open_shared_pool(
    endpoint: EndpointConfig,
    variables: list[str],
    worker: int,
    warn: Callable[[str], None],
    desk: Caller,
) -> SharedPool:
    """A worker's view of the keys in `variables`. Errors: UnavailableError if it lacks one that the
    others have: requests that are lent that key could not be sent from here."""
    lacking = [name for name in variables if not os.environ.get(name, "").strip()]
    if lacking:
        raise UnavailableError(
            f"A worker has no key for {endpoint.base_url}: {lacking[0]} is not set there.",
            "Keys do not travel over Ray: set the variable on every node, as a secret of the "
            "cluster, before Ray is started there.",
        )
    pool = open_pool(endpoint, 0.0, random.random, lambda text: None)
    if [key.variable for key in pool.keys if key.variable] != variables:
        raise ModelError(
            f"A worker has other keys for {endpoint.base_url} than the run.",
            f"Set {', '.join(variables)} alike on every node.",
        )
    return SharedPool(pool.keys, worker, warn, desk)
