"""A run's diary as a page shows it: stages with their progress, curves, notes, how it ended.

In: `events.jsonl`, read on from where it was read to last time. Out: plain figures. A diary of a
hundred thousand events is read once; after that only what is new. Knows no page.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.core.events import read_events

WINDOW = 60.0
"""Seconds that a rate is taken over: long enough to be steady, short enough to be true."""
MOST_NOTES = 200
MOST_MEMORY = 4000
"""Points of the memory's curve; a picture shows fewer."""
CURVES = (
    ("loss", "validation_loss", "Loss", "its own objective"),
    ("kl", "validation_kl", "KL to the teacher", "nats a token"),
    ("spans", "validation_spans", "Span KL to the teacher", "nats a span"),
    ("grad_norm", "", "Gradient", "norm, before clipping"),
    ("learning_rate", "", "Learning rate", ""),
    ("tokens_per_second", "", "Speed", "tokens a second"),
)
"""(training metric, validation metric, title, unit) of what is drawn while a model is trained."""
_DRAWN = frozenset(name for curve in CURVES for name in curve[:2] if name)


@dataclass
class Progress:
    """How far one part of a stage is."""

    done: float
    total: float
    unit: str
    details: dict[str, Any]
    anchors: list[tuple[float, float]] = field(default_factory=list)

    def move(self, time: float, event: dict[str, Any]) -> None:
        """Take over what an event says."""
        self.done, self.total = float(event["done"]), float(event["total"])
        self.unit, self.details = str(event["unit"]), event
        if self.anchors and self.done < self.anchors[-1][1]:
            self.anchors.clear()  # it began anew
        self.anchors.append((time, self.done))
        while len(self.anchors) > 2 and time - self.anchors[1][0] > WINDOW:
            self.anchors.pop(0)

    @property
    def share(self) -> float:
        """Between 0 and 1: of the whole stage where it says so, else of this part."""
        said = self.details.get("share")
        if isinstance(said, int | float):
            return min(1.0, float(said))
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Units a second, lately."""
        (then, before), (now, done) = self.anchors[0], self.anchors[-1]
        return (done - before) / (now - then) if now > then and done > before else None

    @property
    def seconds_left(self) -> float | None:
        """As the stage says, else by the rate."""
        said = self.details.get("seconds_left")
        if isinstance(said, int | float):
            return float(said)
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass
class StageView:
    """One stage of the run. state: waiting, running, done, reused, failed."""

    name: str
    state: str = "waiting"
    began: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    parts: dict[str, Progress] = field(default_factory=dict)
    resumed: bool = False

    @property
    def now(self) -> tuple[str, Progress] | None:
        """The part that moved last, with its name."""
        return next(reversed(self.parts.items()), None)


class Diary:
    """Read with `refresh`; threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        """Grows with every event."""
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._offset = 0
        self.stages: dict[str, StageView] = {}
        self.curves: dict[tuple[str, str, str], dict[int, float]] = {}
        """(stage, model, metric) -> value at each step."""
        self.memory: list[tuple[float, float]] = []
        """(seconds since the run began, bytes that the stage held), at most one a second."""
        self._apart = 1.0
        self.notes: list[tuple[str, str]] = []
        self.state = ""
        """empty (nothing was written), running (it has not said how it ended), finished, failed."""
        self.failure: tuple[str, str] | None = None
        self.began: float | None = None
        self.last: float = 0.0

    def refresh(self) -> None:
        """Read what is new. A diary that was replaced by another is read from its beginning."""
        with self._lock:
            try:
                size = self.path.stat().st_size
            except OSError:
                size = 0
            if size < self._offset:
                self._clear()
                self.version += 1
            if size == self._offset:
                return
            events, self._offset = read_events(self.path, self._offset)
            for event in events:
                self._take(event)
            self.version += len(events)

    def _take(self, event: dict[str, Any]) -> None:
        try:
            time = float(event["time"])
            kind, name = str(event["kind"]), str(event["stage"])
            handler = getattr(self, f"_on_{kind}", None)
            if handler is not None:
                handler(event, name, time)
            self.last = time
        except (KeyError, TypeError, ValueError):
            return  # written by another version, or by hand; the rest still tells its story

    def _stage(self, name: str) -> StageView:
        return self.stages.setdefault(name, StageView(name))

    def _on_run_started(self, event: dict[str, Any], name: str, time: float) -> None:
        self.stages = {one: StageView(one) for one in map(str, event["stages"])}
        self.state, self.failure, self.began = "running", None, time
        self.notes = []
        self.memory, self._apart = [], 1.0

    def _on_run_finished(self, event: dict[str, Any], name: str, time: float) -> None:
        self.state = "finished"

    def _on_run_failed(self, event: dict[str, Any], name: str, time: float) -> None:
        self.state = "failed"
        if self.failure is None or self.failure[0] != event["message"]:
            self.failure = (str(event["message"]), "")

    def _on_started(self, event: dict[str, Any], name: str, time: float) -> None:
        resumed = bool(event.get("resumed"))
        self.stages[name] = StageView(name, "running", time, resumed=resumed)
        if not resumed:
            for key in [key for key in self.curves if key[0] == name]:
                del self.curves[key]

    def _on_skipped(self, event: dict[str, Any], name: str, time: float) -> None:
        self._stage(name).state = "reused"

    def _on_progress(self, event: dict[str, Any], name: str, time: float) -> None:
        stage, part = self._stage(name), str(event.get("step") or name)
        found = stage.parts.pop(part, None) or Progress(0, 0, "", {})
        found.move(time, event)
        held = event.get("memory_bytes")
        if isinstance(held, int | float) and held > 0 and self.began is not None:
            self._hold(time - self.began, float(held))
        stage.parts[part] = found  # the last that moved stands last

    def _hold(self, moment: float, held: float) -> None:
        """A point of the memory's curve; a long run's points lie further and further apart."""
        if self.memory and moment - self.memory[-1][0] < self._apart:
            last, before = self.memory[-1]
            self.memory[-1] = (last, max(before, held))
            return
        self.memory.append((moment, held))
        if len(self.memory) > MOST_MEMORY:
            self._apart *= 2
            pairs = zip(self.memory[::2], self.memory[1::2], strict=False)
            self.memory = [(one[0], max(one[1], other[1])) for one, other in pairs]

    def _on_metric(self, event: dict[str, Any], name: str, time: float) -> None:
        metric, step, value = event["name"], event.get("step"), event["value"]
        if metric in _DRAWN and isinstance(step, int) and isinstance(value, int | float):
            key = (name, str(event.get("model") or ""), metric)
            self.curves.setdefault(key, {})[step] = float(value)

    def _on_rejected(self, event: dict[str, Any], name: str, time: float) -> None:
        self._stage(name).rejected[str(event["reason"])] += int(event.get("count", 1))

    def _on_warning(self, event: dict[str, Any], name: str, time: float) -> None:
        if len(self.notes) < MOST_NOTES:
            self.notes.append((name, str(event["message"])))

    def _on_finished(self, event: dict[str, Any], name: str, time: float) -> None:
        stage = self._stage(name)
        stage.state, stage.seconds = "done", float(event["seconds"])
        stage.peak_memory_bytes = float(event["peak_memory_bytes"])
        stage.counts = dict(event.get("counts") or {})

    def _on_failed(self, event: dict[str, Any], name: str, time: float) -> None:
        self._stage(name).state = "failed"
        self.failure = (str(event["message"]), str(event.get("hint") or ""))
