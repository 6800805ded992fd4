"""What the service says of itself: Prometheus figures, one JSON line a request, an audit log.

In: what happened. Out: text for `/metrics`, lines on a stream, lines in a file. No line holds a
secret, and none holds a prompt or an answer unless that was asked for. Knows no HTTP.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from potstill.core.extras import require

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
AUDIT_BYTES = 50 * 2**20
"""A larger audit log is put aside once, so that it never fills the disk."""


@dataclass(frozen=True)
class Defined:
    """A figure as Prometheus knows it. kind: Counter, Gauge or Histogram; name: of the samples, a
    histogram's without _bucket."""

    kind: str
    name: str
    words: str
    labels: tuple[str, ...]


class Figures:
    """Prometheus metrics in a registry of their own."""

    def __init__(self) -> None:
        prometheus: Any = require("prometheus_client", "serve", "Serving a student")
        self._render: Any = prometheus.generate_latest
        self.content_type = str(prometheus.CONTENT_TYPE_LATEST)
        self._registry = registry = prometheus.CollectorRegistry()
        self.defined: list[Defined] = []

        def made(
            kind: str, name: str, words: str, labels: tuple[str, ...] = (), **more: Any
        ) -> Any:
            end = "_total" if kind == "Counter" else ""
            self.defined.append(Defined(kind, f"potstill_{name}{end}", words, labels))
            return getattr(prometheus, kind)(
                f"potstill_{name}", words, labels, registry=registry, **more
            )

        model = ("model",)
        self.requests = made("Counter", "requests", "Answered requests.", ("route", "status"))
        self.errors = made("Counter", "errors", "Refused or failed requests.", ("code",))
        self.seconds = made(
            "Histogram", "request_seconds", "Whole requests.", ("route",), buckets=SECONDS
        )
        self.first_token = made(
            "Histogram",
            "time_to_first_token_seconds",
            "From the request to its first token, the queue included.",
            model,
            buckets=SECONDS,
        )
        self.queued = made(
            "Histogram", "queue_seconds", "Time in the queue.", model, buckets=SECONDS
        )
        self.rate = made(
            "Histogram",
            "tokens_per_second",
            "Of one answer, after its first token.",
            model,
            buckets=RATES,
        )
        self.tokens = made("Counter", "tokens", "Tokens read and written.", ("model", "kind"))
        self.abandoned = made("Counter", "abandoned", "Answers whose client went away.", model)
        self.variant_requests = made(
            "Counter", "variant_requests", "Requests by version.", ("variant", "outcome")
        )
        self.variant_tokens = made(
            "Counter", "variant_tokens", "Tokens by version.", ("variant", "kind")
        )
        self.variant_first_token = made(
            "Histogram",
            "variant_time_to_first_token_seconds",
            "By version, the queue included.",
            ("variant",),
            buckets=SECONDS,
        )
        self.variant_feedback = made(
            "Counter", "variant_feedback", "Feedback by version.", ("variant", "thumb")
        )
        self.candidate_ready = made("Gauge", "candidate_ready", "1 if a candidate takes requests.")
        self.restarts = made("Counter", "engine_restarts", "Times the engine ended by itself.")
        self.in_flight = made("Gauge", "in_flight", "Requests that the engine works on.")
        self.queue = made("Gauge", "queue_depth", "Requests that wait.")
        self.ready = made("Gauge", "ready", "1 if the engine answers.")
        self.passages = made("Gauge", "passages", "Passages that can be found.")
        signal = ("variant", "signal")
        self.traffic_kept = made("Counter", "traffic_kept", "Requests whose figures were kept.")
        self.traffic_lost = made("Counter", "traffic_lost", "Requests that were not.", ("reason",))
        self.drift_windows = made(
            "Counter", "drift_windows", "Windows compared.", ("variant", "outcome")
        )
        self.drift_alarm = made(
            "Gauge", "drift_alarm", "1 if the newest window raised an alarm.", ("variant",)
        )
        self.drift_p = made("Gauge", "drift_p_value", "Of the newest window.", signal)
        self.drift_psi = made("Gauge", "drift_psi", "Of the newest window.", signal)
        self.drift_mmd = made("Gauge", "drift_mmd_squared", "Of the newest window.", signal)
        self.alerts = made("Counter", "alerts", "Alerts by what became of them.", ("outcome",))

    def watch(self, gauge: Any, read: Callable[[], float]) -> None:
        """Read a gauge when it is asked for."""
        gauge.set_function(read)

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        rendered: bytes = self._render(self._registry)
        return rendered


class Log:
    """One JSON object a line. A stream that takes no more is no reason to refuse a request."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = {"time": _now(), "event": event, **fields}
        try:
            self._stream.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass


class Audit:
    """Who did what, line by line in a file: starts, refusals, documents, feedback."""

    def __init__(self, path: Path, log: Log) -> None:
        self.path, self._log = path, log

    def __call__(self, event: str, **fields: Any) -> None:
        """Append one line, on the disk before this returns; a refusing disk is told to the log."""
        line = json.dumps({"time": _now(), "event": event, **fields}, default=str) + "\n"
        try:
            if self.path.exists() and self.path.stat().st_size > AUDIT_BYTES:
                self.path.replace(self.path.with_suffix(".old.jsonl"))
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._log("audit_not_written", reason=os.strerror(error.errno or 0), about=event)


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
