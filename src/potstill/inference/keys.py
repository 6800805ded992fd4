"""The keys of an endpoint: which one a request goes with, and when.

In: an endpoint's config, the environment, what came of each request. Out: a lease of one key, or
how long to wait for one. Pure but for the environment: time and chance are handed in.
A key's value leaves this file in one place only, the header of a request; `scrub` takes it out of
every text that an endpoint sends back. Knows no client.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from potstill.errors import ModelError, UnavailableError
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.limits import Adaptive, Entry, Limit

SECRET_LENGTH = 8  # what is shorter is a word for a local server that asks for no real key
BACKOFF_SECONDS, LONGEST_BACKOFF = 1.0, 60.0


@dataclass
class Key:
    """One key, its limits, and how it fares."""

    variable: str
    secret: str = field(repr=False)
    requests: Limit
    tokens: Limit
    width: Adaptive
    in_flight: int = 0
    paused_until: float = 0.0
    refusals: int = 0
    """In a row, for being too fast."""
    out: str = ""
    """Why it is used no more."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What authorises a request."""
        return {"Authorization": f"Bearer {self.secret}"} if self.secret else {}

    def wait(self, tokens: float, now: float) -> float | None:
        """Seconds until a request of so many tokens may go; None: when another one is done."""
        if self.in_flight >= int(self.width):
            return None
        waits = (self.requests.wait(1, now), self.tokens.wait(tokens, now))
        return max(0.0, self.paused_until - now, *waits)


@dataclass
class Lease:
    """A key that one request goes with, and what was set aside of its limits."""

    key: Key
    sent: float
    request: Entry
    tokens: Entry


class KeyPool:
    """All keys of an endpoint. chance: a number from 0 to 1, drawn anew at each call."""

    def __init__(
        self, keys: list[Key], chance: Callable[[], float], warn: Callable[[str], None]
    ) -> None:
        self.keys = keys
        self._chance = chance
        self._warn = warn

    @property
    def live(self) -> list[Key]:
        """Keys that are still used."""
        return [key for key in self.keys if not key.out]

    @property
    def width(self) -> int:
        """How many requests may run at once now."""
        return sum(int(key.width) for key in self.live)

    def lease(self, tokens: float, now: float) -> Lease | float | None:
        """A key for a request of about so many tokens: the least busy of those that may go now.

        Else the seconds until one may, or None if one may only when a running request is done.
        """
        waits = [(key.wait(tokens, now), key) for key in self.live]
        ready = [key for wait, key in waits if wait is not None and wait <= 0]
        if not ready:
            return min((wait for wait, _ in waits if wait is not None), default=None)
        chosen = min(ready, key=lambda key: key.in_flight / int(key.width))
        chosen.in_flight += 1
        return Lease(chosen, now, chosen.requests.take(1, now), chosen.tokens.take(tokens, now))

    def give_back(self, lease: Lease, tokens: float | None = None) -> None:
        """The request is done; it took so many tokens (None: not known, so what was set aside)."""
        lease.key.in_flight -= 1
        if tokens is not None:
            lease.key.tokens.settle(lease.tokens, tokens)

    def went_well(self, lease: Lease) -> None:
        """A reply came."""
        lease.key.refusals = 0
        lease.key.width.went_well()

    def too_fast(self, lease: Lease, now: float, retry_after: float | None) -> float:
        """The endpoint wants this key to wait; returns for how long it does."""
        key = lease.key
        key.width.overloaded(lease.sent, now)
        key.refusals += 1
        wait = retry_after
        if wait is None:
            wait = backoff(key.refusals, self._chance())
        key.paused_until = max(key.paused_until, now + wait)
        return wait

    def overloaded(self, lease: Lease, now: float) -> None:
        """The endpoint failed or took too long: fewer at once."""
        lease.key.width.overloaded(lease.sent, now)

    def take_out(self, lease: Lease, reason: str) -> None:
        """This key is of no use any more; said once, by the name of its variable."""
        key = lease.key
        if key.out:
            return
        key.out = reason
        if key.variable:
            left = len(self.live)
            self._warn(
                f"The key in {key.variable} is used no more: {reason}. "
                f"{left} {'key is' if left == 1 else 'keys are'} left."
            )

    def scrub(self, text: str) -> str:
        """`text` without any key, in the forms in which a server may send one back."""
        for key in self.keys:
            text = _without(text, key.secret)
        return text

    def scrub_reply(self, text: str) -> str:
        """The same for what the model wrote, where a placeholder such as `none` is only a word."""
        for key in self.keys:
            if len(key.secret) >= SECRET_LENGTH:
                text = _without(text, key.secret)
        return text


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row: exponential, with full jitter."""
    return chance * min(LONGEST_BACKOFF, BACKOFF_SECONDS * 2.0 ** (failures - 1))


def check_keys(endpoint: EndpointConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Errors: UnavailableError if no variable that the endpoint names is set, ModelError if one
    holds no usable key."""
    _secrets(endpoint, environment)


def open_pool(
    endpoint: EndpointConfig,
    now: float,
    chance: Callable[[], float],
    warn: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
) -> KeyPool:
    """The keys that the environment has. Errors: UnavailableError if it has none of them."""
    secrets = _secrets(endpoint, environment)
    keys: list[Key] = []
    for limits in endpoint.limits:
        if limits.variable and limits.variable not in secrets:
            warn(f"The environment variable {limits.variable} holds no key; it is left out.")
            continue
        if any(limits.variable and key.secret == secrets[limits.variable] for key in keys):
            warn(f"{limits.variable} holds the same key as another variable; it is left out.")
            continue
        keys.append(
            Key(
                limits.variable,
                secrets.get(limits.variable, ""),
                Limit(limits.requests_per_minute, now),
                Limit(limits.tokens_per_minute, now),
                Adaptive(limits.concurrency or endpoint.concurrency),
            )
        )
    return KeyPool(keys, chance, warn)


def _secrets(endpoint: EndpointConfig, environment: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for variable in endpoint.variables:
        secret = environment.get(variable, "").strip()
        if not secret:
            continue
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ModelError(
                f"The environment variable {variable} holds no key: there are spaces or signs in "
                "it that no key has.",
                f"Set it again: export {variable}=...",
            )
        found[variable] = secret
    if endpoint.keys and not found:
        names = ", ".join(endpoint.variables)
        raise UnavailableError(
            f"No key for {endpoint.base_url}: none of these environment variables is set: {names}.",
            f"Set one in the shell that starts Potstill: export {endpoint.variables[0]}=...",
        )
    return found


def _without(text: str, secret: str) -> str:
    if not secret:
        return text
    for form in {secret, quote(secret, safe="")}:
        text = text.replace(form, "[key]")
    return text
