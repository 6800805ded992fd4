"""Traces by OpenTelemetry: a span a request, with children for queue, retrieval and engine.

In: what `tracing.py` is told. Out: spans for an exporter; OTLP over HTTP by the variables of the
environment that OpenTelemetry defines (endpoint, headers, sampler, service name). Attributes have
the names of its semantic conventions for HTTP and for generative models; none is a prompt, an
answer or a secret. Knows no route.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from potstill import __version__
from potstill.serve.tracing import Span, Tracing

FLUSH_SECONDS = 5.0
"""A collector that does not answer holds the end of the service no longer."""
NAMES = {
    "status": "http.response.status_code",
    "error": "error.type",
    "request": "potstill.request",
    "key": "potstill.key",
    "model": "gen_ai.request.model",
    "response": "gen_ai.response.id",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "queued_seconds": "potstill.queued_seconds",
    "first_token_seconds": "gen_ai.response.time_to_first_chunk",
}
"""Fields of the log, and what they are called in a trace. Any other is not told."""


def exporting(service: str, tell: Any) -> OtelTracing:
    """Traces for the endpoint of the environment; tell: hears what goes wrong there."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    problems = logging.getLogger("opentelemetry")
    problems.handlers, problems.propagate = [_Tell(tell)], False
    return OtelTracing(OTLPSpanExporter(), service)


class OtelTracing(Tracing):
    """Spans for an exporter, in batches, by a thread of their own."""

    def __init__(self, exporter: SpanExporter, service: str) -> None:
        found = Resource.create({"service.version": __version__})
        own = Resource({"service.name": service}) if _nameless(found) else Resource({})
        self._provider = TracerProvider(resource=found.merge(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("potstill.serve", __version__)

    @contextmanager
    def request(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> Iterator[Span]:
        """A span of the server, a child of the client's own where it sent a traceparent."""
        carrier = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers
        }
        parent = extract(
            {name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier},
            context.Context(),
        )
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, {"http.request.method": method}
        )
        token = context.attach(trace.set_span_in_context(span, parent))
        try:
            with _ended(span) as kept:
                yield kept
        finally:
            context.detach(token)

    @contextmanager
    def part(self, name: str) -> Iterator[Span]:
        """A child of the request. It is never made the current one: parts begin and end in
        generators, which may be closed from another task."""
        with _ended(self._tracer.start_span(name)) as kept:
            yield kept

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)


@contextmanager
def _ended(span: trace.Span) -> Iterator[Span]:
    """The span, ended with the block. Of an error its kind alone: a message may quote what was
    asked."""
    try:
        yield _OtelSpan(span)
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.end()


class _OtelSpan(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.trace = trace.format_trace_id(span.get_span_context().trace_id)

    def note(self, about: Mapping[str, Any]) -> None:
        for field, value in about.items():
            if field in NAMES and value not in (None, ""):
                self._span.set_attribute(NAMES[field], value)

    def end(self, name: str, about: Mapping[str, Any]) -> None:
        self._span.update_name(name)
        self._span.set_attribute("http.route", name.partition(" ")[2])
        self.note(about)
        if about.get("status", 0) >= 500:
            self._span.set_status(Status(StatusCode.ERROR, about.get("error") or None))


class _Tell(logging.Handler):
    """OpenTelemetry's own complaints, as lines of the service's log."""

    def __init__(self, tell: Any) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("tracing_problem", reason=record.getMessage()[:300])


def _nameless(resource: Resource) -> bool:
    return str(resource.attributes.get("service.name", "")).startswith("unknown_service")
