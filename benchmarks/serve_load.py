"""Measures the gateway far beyond its capacity: what clients get, what it holds, when it is over.

    python benchmarks/serve_load.py [--model FILE.gguf] [--clients 200] [--seconds 120]

Each client asks again and again, half of them streaming, and waits a moment after a 429. Counts
answers by status, those that broke or came without their end, and takes the accepted requests'
time, the gateway's memory, and the time of a single request five seconds after the rush and before
it. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from figures import figure
from serve import Side, opened
from serve_options import MODEL

from potstill.core.machine import resident_bytes, usable_cores
from potstill.models.refs import gguf_file, parse

PAUSE = 0.5
DEADLINE = 150.0  # the queue's 30 s and the engine's 120 s
AFTER = 5.0


async def ask(client: Any, side: Side, number: int, tokens: int = 32) -> int:
    """The status; 0 for an answer that broke off."""
    streamed = bool(number % 2)
    body = {
        "model": side.model,
        "messages": [{"role": "user", "content": f"{number}: what does the night warden do?"}],
        "max_tokens": tokens,
        "stream": streamed,
    }
    try:
        answer = await client.post(f"{side.address}/v1/chat/completions", json=body)
    except httpx2.HTTPError as error:
        print(repr(error), file=sys.stderr)
        return 0
    if answer.status_code == 200 and streamed and not answer.text.endswith("data: [DONE]\n\n"):
        return 0
    return int(answer.status_code)


async def rush(side: Side, clients: int, seconds: float) -> tuple[Counter[int], list[float], int]:
    """Statuses, the accepted requests' seconds, the most memory of the gateway in bytes."""
    statuses: Counter[int] = Counter()
    took: list[float] = []
    most, end = 0, time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=None, trust_env=False, limits=limits) as http:

        async def one(number: int) -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                status = await ask(http, side, number)
                statuses[status] += 1
                if status == 200:
                    took.append(time.monotonic() - began)
                else:
                    await asyncio.sleep(PAUSE)

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, resident_bytes(side.process))
                await asyncio.sleep(1.0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(number) for number in range(clients)))
        watching.cancel()
    return statuses, took, most


async def alone(side: Side) -> float:
    """Median seconds of a request when nobody else asks."""
    times = []
    async with httpx2.AsyncClient(timeout=None, trust_env=False) as http:
        for number in range(5):
            began = time.monotonic()
            await ask(http, side, number)
            times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    gguf = gguf_file(parse(options.model))
    if gguf is None:
        sys.exit(f"{options.model} is no GGUF.")
    with opened(Path(gguf), options.threads) as sides:
        side = sides["gateway"]
        before, held = asyncio.run(alone(side)), resident_bytes(side.process)
        statuses, took, most = asyncio.run(rush(side, options.clients, options.seconds))
        time.sleep(AFTER)
        after = asyncio.run(alone(side))
    how = f"{options.clients} clients for {options.seconds:g} s, {dict(statuses)}"
    bad = sum(count for status, count in statuses.items() if status >= 500)
    figure("load_5xx", bad, "answers", 0, bad == 0, how)
    figure("load_broken", statuses[0], "answers", 0, statuses[0] == 0, how)
    late = statistics.quantiles(took, n=20)[-1]
    figure("load_accepted_p95", round(late, 2), "s", DEADLINE, late <= DEADLINE, how)
    grown = (most - held) / 1e6
    figure("load_memory_added", round(grown, 1), "MB", 200, grown <= 200, how)
    figure(
        "load_after_over_before", round(after / before, 2), "ratio", 1.5, after / before <= 1.5, how
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
