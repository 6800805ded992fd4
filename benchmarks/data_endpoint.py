"""Measures teachers behind an address: the key pool against strict limits, and fifty kills.

    python benchmarks/data_endpoint.py [--requests 1700] [--kills 50] [--only pool|kills]

The endpoint is a mock on 127.0.0.1 (tests/support/mock_endpoint.py) that keeps the limits of each
key in a sliding minute, as the strictest servers do. Prints one JSON object a line; everything else
goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import figure

from potstill.inference.base import Request
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.fake import FakeModel
from potstill.inference.openai import EndpointModel
from potstill.records import Turn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from killed_generation import kill_generation
from mock_endpoint import Account, Limits, MockEndpoint

KEYS = {
    "POOL_LARGE": Limits(requests_per_minute=900, concurrency=16),
    "POOL_SMALL": Limits(requests_per_minute=120, concurrency=16),
    "POOL_TOKENS": Limits(requests_per_minute=900, tokens_per_minute=15_000, concurrency=16),
    "POOL_REVOKED": Limits(requests_per_minute=900, concurrency=16, revoked=True),
}
BUSY = (429, {"Retry-After": "1"}, '{"error": {"message": "overloaded"}}')


def delay(number: int) -> float:
    """Most replies take a quarter of a second, every twentieth three."""
    return 3.0 if number % 20 == 7 else 0.1 + (number * 37 % 31) / 100


def allowed(account: Account) -> float:
    """Requests a second that the limits of a key let through, of the size that it was sent."""
    limits = account.limits
    if limits.revoked:
        return 0.0
    rates = [limits.requests_per_minute or 0.0]
    if limits.tokens_per_minute:
        rates.append(limits.tokens_per_minute * account.answered / account.tokens)
    return min(rates) / 60


def pool(count: int) -> None:
    """All keys at once, until `count` requests are answered."""
    asked = [
        Request(
            (Turn(role="user", content=f"Say again: the bell of pier {n} rings at noon."),),
            max_tokens=48,
        )
        for n in range(count)
    ]
    expected = {n: reply.text for n, reply in FakeModel().complete(asked)}
    secrets = {f"secret-of-{name}": limits for name, limits in KEYS.items()}
    for name in KEYS:
        os.environ[name] = f"secret-of-{name}"
    keys = [
        {
            "variable": name,
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "concurrency": limits.concurrency,
        }
        for name, limits in KEYS.items()
    ]
    warned: list[str] = []
    busy = 0

    def behave(number: int, seen: Any) -> Any:
        nonlocal busy
        if number % 101 != 100 or seen.key == "secret-of-POOL_REVOKED":
            return None
        busy += 1
        return BUSY

    with MockEndpoint(secrets, behave=behave, delay=delay) as server:
        endpoint = EndpointConfig.model_validate({"base_url": server.url, "keys": keys})
        model = EndpointModel(endpoint, "m", warned.append)
        began = time.monotonic()
        replies = dict(model.complete(asked))
        took = time.monotonic() - began
        model.close()
        accounts = server.accounts
        times = [one.time for one in server.seen]
    span = max(times) - min(times)
    ratio = sum(one.answered for one in accounts.values()) / span
    ratio /= sum(allowed(one) for one in accounts.values())
    for name, one in accounts.items():
        rate = f"{one.answered / span:.2f} of {allowed(one):.2f} a second"
        print(
            f"{name}: {one.answered} answered, {rate}, broken {dict(one.broken)}", file=sys.stderr
        )
    how = (
        f"{count} requests over 4 keys (900/min; 120/min; 15,000 tokens/min; revoked) for "
        f"{took:.0f} s; {busy} answers 429 with Retry-After 1, every 20th reply takes 3 s; "
        "requests answered from the first sent to the last, against what the limits let through"
    )
    figure("pool_throughput", round(ratio, 4), "ratio", 0.95, ratio >= 0.95, how)
    broken = sum(sum(one.broken.values()) for one in accounts.values())
    figure("pool_limits_broken", broken, "requests", 0, broken == 0, "in any sliding minute")
    lost = sum(
        n not in replies or replies[n].text != text or replies[n].finish_reason == "error"
        for n, text in expected.items()
    )
    figure("pool_rows_lost", lost, "rows", 0, lost == 0, f"of {count}; {len(warned)} key warned of")


def kills(count: int) -> None:
    """Generation that is killed again and again."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_generation(Path(folder), kills=count, chunks=120)
    how = (
        f"SIGKILL at {outcome.kills} points of a generation of {outcome.requests} requests, 4 at "
        "once; digests of all files against a calm run's"
    )
    figure("kills_same_digest", outcome.same, "yes or no", True, outcome.same, how)
    again = outcome.sent_again
    holds = again <= outcome.allowed
    how = f"requests sent twice; {outcome.allowed} may have been in flight at the kills"
    figure("kills_requests_repeated", again, "requests", outcome.allowed, holds, how)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1700)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=("pool", "kills"))
    given = parser.parse_args()
    if given.only != "kills":
        pool(given.requests)
    if given.only != "pool":
        kills(given.kills)


if __name__ == "__main__":
    main()
