"""Measures whether the time of a refusal tells anything about the key that was refused.

    python benchmarks/serve_keys.py [--rounds 2000]

Kinds: no key, no key's form, an unknown id, the id of a live key with another secret, the same
wrong in its last character alone, a revoked key, one of 9,000 characters. Each round asks once with
each, in an order of its own: the check alone in this process, then over one kept connection. Two
kinds are told apart by the area under the ROC curve of their times (0.5: not at all), compared with
what a random split of one and the same kind gives. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from figures import figure

from potstill.serve.auth import PREFIX, SCOPES, KeyFile
from potstill.serve.feedback import FeedbackStore
from potstill.serve.gateway import Gateway, ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.monitor import Log
from potstill.serve.problems import ApiError
from potstill.serve.server import Server, listen

ALIKE = ("unknown id", "wrong secret", "last character", "revoked")
"""Of one length and form: only the server knows what is wrong with them. Of the others a client
knows itself that they are no keys, and that it takes longer to read 9,000 characters."""
CHECK_GOAL = 1.0
"""Microseconds between the medians of any two kinds, without a network."""
GOAL = 0.03
"""The area may lie so far from 0.5, beyond what chance gives."""
Times = dict[str, list[float]]


class Nothing:
    """An engine that nobody asks here."""

    local, model, context_tokens, ready, upstream = False, "nothing", None, True, None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {}


def wrong_keys(keys: KeyFile) -> dict[str, str]:
    """One of each kind, beside a hundred keys that are right."""
    made = [keys.add(f"user{number}", SCOPES, KeyLimits()) for number in range(100)]
    revoked = keys.add("revoked", SCOPES, KeyLimits())
    keys.revoke("revoked")
    _, identity, secret = made[50].split("_", 2)
    other = "B" if secret[-1] == "A" else "A"
    return {
        "missing": "",
        "no form": "sk-0123456789abcdef0123456789abcdef",
        "unknown id": f"{PREFIX}_{'0' * 12}_{secret}",
        "wrong secret": f"{PREFIX}_{identity}_{'x' * 43}",
        "last character": f"{PREFIX}_{identity}_{secret[:-1]}{other}",
        "revoked": revoked,
        "overlong": f"{PREFIX}_{identity}_{'x' * 9000}",
    }


def timed(wrong: dict[str, str], rounds: int, ask: Callable[[str], None]) -> Times:
    """Seconds of each kind, in rounds of changing order; the first hundred warm up."""
    random, found = Random(7), {kind: list[float]() for kind in wrong}
    for number in range(rounds + 100):
        for kind in random.sample(list(wrong), len(wrong)):
            began = time.perf_counter()
            ask(wrong[kind])
            if number >= 100:
                found[kind].append(time.perf_counter() - began)
    return found


def area(one: list[float], other: list[float]) -> float:
    """The probability that a time of `one` is the longer, ties half (Mann and Whitney)."""
    order = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    ranks = {0: 0.0, 1: 0.0}
    place = 0
    for _, same in itertools.groupby(order, key=lambda pair: pair[0]):
        tied = list(same)
        for _, side in tied:
            ranks[side] += place + (len(tied) + 1) / 2
        place += len(tied)
    return (ranks[0] - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


def told(times: Times, how: str) -> None:
    """The kinds that can be told apart best, beside what chance gives."""
    random = Random(11)
    by_chance = []
    for values in times.values():
        for _ in range(20):
            mixed = random.sample(values, len(values))
            half = len(mixed) // 2
            by_chance.append(abs(area(mixed[:half], mixed[half:]) - 0.5))
    chance = max(by_chance)
    apart = {
        (a, b): abs(area(times[a], times[b]) - 0.5) for a, b in itertools.combinations(times, 2)
    }
    medians = {kind: round(1e6 * statistics.median(one), 1) for kind, one in times.items()}
    print(medians, {k: round(v, 3) for k, v in apart.items()}, file=sys.stderr)
    for what, kinds in (("", ALIKE), ("_of_any_kind", tuple(times))):
        some = {pair: value for pair, value in apart.items() if set(pair) <= set(kinds)}
        (a, b), value = max(some.items(), key=lambda pair: pair[1])
        spread = abs(medians[a] - medians[b])
        said = f"{how}; {a} and {b}: medians {spread:.1f} us apart; by chance up to {chance:.3f}"
        goal = None if what else GOAL
        holds = goal is None or value <= chance + goal
        figure(f"keys_http_area{what}", round(value, 3), "beyond 0.5", goal, holds, said)


def over_http(keys: KeyFile, wrong: dict[str, str], folder: Path, rounds: int) -> Times:
    """Through the whole service."""
    config = ServeConfig(port=0)
    engine: Any = Nothing()
    gateway = Gateway(
        name="student",
        config=config,
        engine=engine,
        folder=folder,
        keys=keys,
        ask=lambda passage, question: question,
        feedback=FeedbackStore(folder / "feedback.sqlite"),
        log=Log(io.StringIO()),
    )
    server, started = Server(gateway), threading.Event()
    with listen(config) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(
            target=lambda: asyncio.run(server.run_at(listening, lambda address: started.set()))
        )
        thread.start()
        started.wait(60)
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def ask(key: str) -> None:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request("GET", "/v1/models", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 401

        try:
            return timed(wrong, rounds, ask)
        finally:
            connection.close()
            server.should_exit = True
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = KeyFile(folder / "keys.json")
        wrong = wrong_keys(keys)

        def check(key: str) -> None:
            with suppress(ApiError):
                keys.check(key, "chat")

        how = f"{options.rounds} rounds of {len(wrong)} kinds, 101 keys"
        times = timed(wrong, 5 * options.rounds, check)
        middle = {kind: 1e6 * statistics.median(one) for kind, one in times.items()}
        spread = max(middle.values()) - min(middle.values())
        said = f"the check alone, 5 x {how}; medians {min(middle.values()):.1f} us and more"
        figure("keys_check_spread", round(spread, 2), "us", CHECK_GOAL, spread <= CHECK_GOAL, said)
        told(over_http(keys, wrong, folder, options.rounds), f"one connection, {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
