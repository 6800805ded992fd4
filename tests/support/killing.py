"""A program killed again and again while it asks a teacher.

In: the program's command, and the file in which its teacher notes what it is asked. Out: how often
it was killed before it was left to end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.inference.base import Reply, Request


def noted(kind: type[Any], sent: Path) -> type[Any]:
    """The same sort of teacher, which notes every request before it answers."""

    class Noted(kind):  # type: ignore[misc]
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            for position, request in enumerate(requests):
                with sent.open("a") as file:
                    file.write(request.digest("fake 1") + "\n")
                for _, reply in super().complete([request]):
                    yield position, reply

    return Noted


def kill(command: Sequence[str], sent: Path, *, seed: int, times: int, within: float) -> int:
    """Start the program up to `times` times and kill it within so many seconds of its first
    request; then let it end. Returns the kills."""
    moments, kills = random.Random(seed), 0
    for _ in range(times):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        before = sent.stat().st_size if sent.exists() else 0
        while process.poll() is None and (not sent.exists() or sent.stat().st_size == before):
            time.sleep(0.01)  # let it come to its work, then let it do some of it
        time.sleep(moments.uniform(0.0, within))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command, check=True)
    return kills
