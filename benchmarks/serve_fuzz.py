"""Sends thousands of mutated requests to a service and looks at every answer.

    python benchmarks/serve_fuzz.py [--model FILE.gguf] [--requests 10000] [--seed 7]

No answer may be a 5xx, none may take longer than half a minute, every error has to be the error
object, every request that is whole has to be answered; afterwards the service has to answer as
before, with nothing running or waiting. `--only N` sends one request of the sequence and prints
both sides. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import figure
from serve_judged import HANGS, Target, send
from serve_mutations import Mutated, mutated
from serve_options import options_of

from potstill.core.machine import resident_bytes

NAME = "student"
AT_ONCE = 8
BODY_SECONDS = 0.5
"""A body that never comes ends so soon here; an operator's default is 20 s."""


def probe(target: Target) -> tuple[float, bool]:
    """Seconds and success of an ordinary request, the median of five."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "How many litres?"}],
        "max_tokens": 8,
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        f"{target.key}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    replies = [send(target, Mutated(head.encode() + content, "", True)) for _ in range(5)]
    good = all(one.status == 200 and b'"content":' in one.content for one in replies)
    return sorted(one.seconds for one in replies)[2], good


def fuzz(target: Target, seed: int, count: int) -> tuple[Counter[int], list[str], float]:
    """Statuses, what was wrong (with the request's number), the longest seconds."""
    statuses: Counter[int] = Counter()
    problems: list[str] = []
    longest, lock = 0.0, threading.Lock()

    def one(number: int) -> None:
        nonlocal longest
        request = mutated(seed, number, NAME, target.key)
        reply = send(target, request)
        with lock:
            statuses[reply.status] += 1
            longest = max(longest, reply.seconds)
            if reply.problem:
                problems.append(f"{number} ({request.how}): {reply.problem} {reply.status}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(one, range(count)), 1):
            if done % 1000 == 0:
                print(f"{done}: {dict(statuses)}, {len(problems)} problems", file=sys.stderr)
    return statuses, problems, longest


@contextmanager
def opened(gguf: Path, threads: int) -> Iterator[Target]:
    """A service in a process of its own, with keys, documents and feedback."""
    command = [sys.executable, __file__, "--serve", str(gguf), "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Target(**json.loads(process.stdout.readline()), process=process.pid)
        process.stdin.write(b"end\n")
        process.stdin.flush()
        print(process.stdout.read().decode(), file=sys.stderr)


def serve_here(gguf: Path, threads: int) -> None:
    """Serve until standard input says so; tells port and key, at the end what it counted."""
    from serve_here import corpus_of, service

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with service(folder, gguf, threads, AT_ONCE, NAME, BODY_SECONDS, corpus_of(folder)) as (
            port,
            key,
            gateway,
            log,
        ):
            print(json.dumps({"port": port, "key": key}), flush=True)
            sys.stdin.readline()
            foreseen = [one for one in log.getvalue().splitlines() if '"failed"' in one]
            left = {"running": gateway.gate.running, "waiting": gateway.gate.waiting}
            print(json.dumps({**left, "unforeseen": foreseen[:20]}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", type=int, help="one request of the sequence")
    found = options_of(parser, serve_here)
    if found is None:
        return 0
    options, gguf = found
    with opened(gguf, options.threads) as target:
        if options.only is not None:
            request = mutated(options.seed, options.only, NAME, target.key)
            print(request.how, request.content[:3000], send(target, request))
            return 0
        before, good = probe(target)
        assert good
        held = resident_bytes(target.process)
        began = time.monotonic()
        statuses, problems, longest = fuzz(target, options.seed, options.requests)
        seconds = time.monotonic() - began
        grown = (resident_bytes(target.process) - held) / 1e6
        after, good = probe(target)
    for one in problems[:50]:
        print(one, file=sys.stderr)
    how = (
        f"{options.requests} mutated requests, seed {options.seed}, {AT_ONCE} at once, "
        f"{seconds:.0f} s, {gguf.name}; {dict(sorted(statuses.items()))}"
    )
    figure("fuzz_wrong_answers", len(problems), "answers", 0, not problems, how)
    figure("fuzz_longest", round(longest, 2), "s", HANGS, longest < HANGS, how)
    figure("fuzz_memory_added", round(grown, 1), "MB", 200, grown <= 200, how)
    figure("fuzz_answers_afterwards", int(good), "of 1", 1, good, how)
    share: Any = round(after / before, 2)
    figure("fuzz_after_over_before", share, "ratio", 2.0, share <= 2.0, how)
    return 0 if not problems and good else 1


if __name__ == "__main__":
    sys.exit(main())
