"""Generation by a teacher behind an address, killed again and again, against a calm one.

In: how many kills, how many requests at once. Out: what was asked twice, and the digests of what
came out. The server is a mock in this process; the stage runs in a child that is killed.

    python tests/support/killed_generation.py FOLDER URL AT_ONCE      the child
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mock_endpoint import MockEndpoint

from potstill.core.events import Emitter
from potstill.core.files import write_records
from potstill.core.stage import Artifact, Context
from potstill.core.store import Store
from potstill.generate import GenerateConfig
from potstill.generate.run import run
from potstill.inference.endpoint import EndpointConfig
from potstill.records import Chunk, short_id

PLACES = ("Skerry Point", "Lower Quell", "Port Annet", "Widow Bay")
REPLY_SECONDS = 0.03


@dataclass(frozen=True)
class Outcome:
    """What a killed generation came to."""

    kills: int
    requests: int
    sent: int
    sent_again: int
    answered_again: int
    allowed: int
    """Requests that may have been in flight at the kills."""
    same: bool
    """Whether its files are those of the calm one."""


def write_inputs(folder: Path, chunks: int) -> None:
    """What ingestion would have left."""
    data = folder / "ingest" / "data"
    write_records(data / "chunks.jsonl", [_chunk(number) for number in range(chunks)])
    for name in ("rows", "contexts"):
        write_records(data / f"{name}.jsonl", [])


def generate(folder: Path, url: str, at_once: int) -> None:
    """Run the stage in a folder; goes on from what an earlier call left there."""
    config = GenerateConfig(
        teacher="openai:m",
        endpoint=EndpointConfig(base_url=url, concurrency=at_once, first_byte_seconds=10),
        pairs_per_chunk=4,
    )
    context = Context(folder, folder / "cache", 17, 1, Emitter(folder / "events.jsonl", "generate"))
    draft = Store(folder / "store").draft("generate", "k")
    run(config, {"ingest": Artifact("ingest", "k", folder / "ingest", "x")}, draft, context)


def digests(folder: Path) -> dict[str, str]:
    """Of each file that the stage left."""
    data = Store(folder / "store").draft("generate", "k").data
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in data.iterdir()}


def kill_generation(folder: Path, kills: int, chunks: int, at_once: int = 4) -> Outcome:
    """Compare a calm generation with one that is killed `kills` times, at points that are spread
    over all its requests, and now and then while it starts."""
    lot = random.Random(kills)
    with MockEndpoint(delay=lambda n: REPLY_SECONDS) as server:
        write_inputs(folder / "calm", chunks)
        generate(folder / "calm", server.url, at_once)
        calm = digests(folder / "calm")
        requests = server.count
    with MockEndpoint(delay=lambda n: REPLY_SECONDS) as server:
        # The address is part of the teacher's identity, which rows do not name: files are equal.
        write_inputs(folder / "killed", chunks)
        command = [sys.executable, __file__, str(folder / "killed"), server.url, str(at_once)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = 0
        while done < kills:
            child = subprocess.Popen(command, env=environment)
            if done % 5 == 4:
                time.sleep(lot.uniform(0.0, 0.5))
            else:
                left = (requests - server.count) / (kills - done)
                until = server.count + 1 + int(lot.uniform(0.0, 1.5) * max(0.0, left - at_once))
                while child.poll() is None and server.count < until:
                    time.sleep(0.002)
                time.sleep(lot.uniform(0.0, 2 * REPLY_SECONDS))
            if child.poll() is not None:
                raise AssertionError(f"it ended with {child.returncode} after {done} kills")
            child.send_signal(signal.SIGKILL)
            child.wait()
            done += 1
        subprocess.run(command, env=environment, check=True)
        times = Counter(one.digest for one in server.seen)
        return Outcome(
            kills,
            requests,
            server.count,
            sum(count - 1 for count in times.values()),
            server.repeated,
            kills * at_once,
            digests(folder / "killed") == calm,
        )


def _chunk(number: int) -> Chunk:
    text = (
        f"The harbour lamp number {number + 100} of {PLACES[number % 4]} burns {number + 3} litres "
        f"of thornoil every night. The wooden bridge beside it was built in {1500 + number}.\n\n"
        f"Market day begins at {number % 12 + 5} o'clock sharp, and the warden of pier "
        f"{number + 20} rings the copper bell."
    )
    name = short_id("d", str(number))
    return Chunk(id=name, document="d", source="h.md", start=0, end=len(text), tokens=60, text=text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
