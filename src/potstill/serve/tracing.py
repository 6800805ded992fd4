"""Where the time of a request goes, for whoever collects traces.

In: the beginning and the end of a request and of its parts. Out: nothing here: this is what a
service does that sends no traces. `otel.py` sends them; it is imported only where
OTEL_EXPORTER_OTLP_ENDPOINT is set. No part is told a prompt, an answer, or a secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from potstill.core.extras import install_line, installed_version

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OFF = "OTEL_SDK_DISABLED"
PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")


class Span:
    """A request, or a part of it, that lasts. trace: the id of its trace, 32 hexadecimal digits."""

    trace = ""

    def note(self, about: Mapping[str, Any]) -> None:
        """Say something of it: fields as the log has them."""

    def end(self, name: str, about: Mapping[str, Any]) -> None:
        """A request is over: its method and route, and what the log says of it."""


class Tracing:
    """Sends nothing."""

    @contextmanager
    def request(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> Iterator[Span]:
        """A request, in whose task and in whose tasks' tasks `part` finds it. A W3C traceparent in
        the headers is taken over."""
        yield Span()

    @contextmanager
    def part(self, name: str) -> Iterator[Span]:
        """A part of the request that this task belongs to: queue, retrieval, engine."""
        yield Span()

    def close(self) -> None:
        """Send what is left."""


def tracing_from_environment(service: str, tell: Any) -> Tracing:
    """Traces for the endpoint that the environment names; none where it names none.

    service: the name in `service.name`, unless OTEL_SERVICE_NAME has another. tell: hears, as
    (event, fields), that packages are missing (the variables are often set for a whole machine, so
    that is no reason not to serve), and what the collector refuses.
    """
    named = any(os.environ.get(name, "").strip() for name in ENDPOINTS)
    if not named or os.environ.get(OFF, "").strip().lower() == "true":
        return Tracing()
    absent = [one for one in PACKAGES if installed_version(one) is None]
    if absent:
        tell("tracing_not_available", missing=absent, install=install_line("otel"))
        return Tracing()
    from potstill.serve.otel import exporting

    return exporting(service, tell)
