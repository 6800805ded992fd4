"""The run's diary: one JSON line an event, appended by stages, read by anyone who watches.

In: calls from stages and the runner. Out: `events.jsonl`. The terminal's progress bars, the
studio and the tests read the same lines. Knows nothing of how they are shown.

The kinds of event are listed in `KINDS`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.core.machine import resident_bytes

KINDS = frozenset(
    (
        "run_started",
        "skipped",
        "started",
        "progress",
        "metric",
        "rejected",
        "warning",
        "finished",
        "failed",
        "run_finished",
        "run_failed",
    )
)


class Emitter:
    """Appends events of one stage to a file; each event is one write, so lines never mix.

    `path` None drops the events (a stage called from a script). Progress is thinned to a few
    events a second, so that a long run's diary stays small.
    """

    def __init__(self, path: Path | None, stage: str = "") -> None:
        self.path = path
        self.stage = stage
        self._last_progress = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event. `kind` must be one of `KINDS`."""
        if kind not in KINDS:
            raise ValueError(f"unknown event kind {kind!r}")
        if self.path is None:
            return
        event = {"time": round(time.time(), 3), "stage": self.stage, "kind": kind, **fields}
        line = (json.dumps(event, ensure_ascii=False, default=str) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        """Say how far the stage is: `done` of `total` `unit`s. `step` names the part of it. The
        event also says how much memory this process holds then, in bytes (`memory_bytes`)."""
        now = time.monotonic()
        if done < total and now - self._last_progress < 0.25:
            return
        self._last_progress = now
        if self.path is None:
            return
        held = resident_bytes(os.getpid())
        self.emit("progress", done=done, total=total, unit=unit, memory_bytes=held, **fields)

    def metric(self, name: str, value: float, step: int | None = None, **fields: Any) -> None:
        """One figure worth a curve or a table."""
        self.emit("metric", name=name, value=value, step=step, **fields)

    def warning(self, message: str) -> None:
        """Something the user should know though the run goes on."""
        self.emit("warning", message=message)


def read_events(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole events from byte `start` on, and the byte to go on from. A torn last line waits."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line that a full disk cut short; the diary goes on after it
        if isinstance(event, dict):
            events.append(event)
    return events, start + end


def follow(path: Path, start: int, alive: Any, pause: float = 0.1) -> Iterator[dict[str, Any]]:
    """Yield events as they come until `alive()` is false and the file is read to its end."""
    while True:
        running = alive()
        events, start = read_events(path, start)
        yield from events
        if not running:
            return
        if not events:
            time.sleep(pause)
