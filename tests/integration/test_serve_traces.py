"""Traces of requests, in memory and over OTLP/HTTP to a stand-in of a collector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from served import SECONDS, EngineStandIn, Served, served

from potstill.records import Chunk
from potstill.serve import otel, tracing
from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.gateway import ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.otel import OtelTracing
from potstill.serve.problems import unavailable
from potstill.serve.tracing import Tracing, tracing_from_environment

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET_WORDS = "the xylophone of uncle Fergus"


class Echo(EngineStandIn):
    """Says the last message's words, one by one; breaks at the word "break"."""

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for word in body["messages"][-1]["content"].split():
            if word == "break":
                raise unavailable(f"The engine broke at {SECRET_WORDS}.")
            yield {"choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}


def corpus(folder: Path) -> Corpus:
    text = "The xylophone stands in the hall."
    where = {"id": "c", "document": "d", "source": "h.md", "start": 0, "end": len(text)}
    chunk = Chunk.model_validate({**where, "tokens": 8, "text": text})
    return Corpus([chunk], folder / "documents", lambda file, name, work: [])


def ask(service: Served, words: str = SECRET_WORDS, **more: Any) -> httpx2.Response:
    headers = more.pop("headers", {})
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], **more}
    return httpx2.post(
        f"{service.address}/v1/chat/completions",
        json=body,
        headers=headers,
        trust_env=False,
        timeout=SECONDS,
    )


@contextmanager
def traced(folder: Path, **more: Any) -> Iterator[tuple[Served, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    engine: Any = Echo()
    config = ServeConfig(port=0, parallel=2)
    with served(
        folder, engine, config, tracing=OtelTracing(exporter, "tiny"), corpus=corpus(folder), **more
    ) as service:
        yield service, exporter


def tree(exporter: InMemorySpanExporter) -> dict[str, list[str]]:
    """Names of the requests' spans with those of their children, in order of their beginning."""
    spans = sorted(exporter.get_finished_spans(), key=lambda one: one.start_time or 0)
    names = {one.context.span_id: one.name for one in spans}
    found: dict[str, list[str]] = {one.name: [] for one in spans if one.kind == SpanKind.SERVER}
    for one in spans:
        if one.kind != SpanKind.SERVER:
            assert one.parent is not None
            found[names[one.parent.span_id]].append(one.name)
    return found


def test_a_request_is_a_span_with_its_parts(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("alice", SCOPES, KeyLimits())
    with traced(tmp_path, keys=keys) as (service, exporter):
        headers = {
            "Authorization": f"Bearer {key}",
            "traceparent": f"00-{TRACE}-{PARENT}-01",
            "tracestate": "vendor=value",
        }
        said = ask(service, headers=headers, model="tiny:documents", stream=True)
        assert said.text.endswith("data: [DONE]\n\n")
    name = "POST /v1/chat/completions"
    assert tree(exporter) == {name: ["retrieval", "queue", "engine"]}
    (request,) = [one for one in exporter.get_finished_spans() if one.kind == SpanKind.SERVER]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.context.trace_state.get("vendor") == "value"
    about = dict(request.attributes or {})
    first = about.pop("gen_ai.response.time_to_first_chunk")
    queued = about.pop("potstill.queued_seconds")
    assert isinstance(first, float)
    assert 0 <= queued <= first  # type: ignore[operator]
    response = json.loads(said.text.split("\n")[0].removeprefix("data: "))["id"]
    assert about == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "potstill.request": said.headers["x-request-id"],
        "potstill.key": key.split("_")[1],
        "gen_ai.request.model": "tiny:documents",
        "gen_ai.response.id": response,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
    }
    assert request.resource.attributes["service.name"] == "tiny"
    lines = [json.loads(line) for line in service.log.getvalue().splitlines()]
    assert [one["trace"] for one in lines if one["event"] == "request"] == [TRACE]
    everything = "".join(one.to_json() for one in exporter.get_finished_spans())
    for secret in ("xylophone", "Fergus", key, key.rsplit("_", 1)[1]):
        assert secret not in everything


def test_what_fails_is_an_error_and_tells_no_words(tmp_path: Path) -> None:
    with traced(tmp_path) as (service, exporter):
        assert ask(service, "please break").status_code == 503
        assert ask(service, model="other").status_code == 404
        assert ask(service, "fine", headers={"traceparent": "00-nonsense"}).status_code == 200
    roots = [one for one in exporter.get_finished_spans() if one.kind == SpanKind.SERVER]
    assert [one.status.status_code for one in roots] == [
        StatusCode.ERROR, StatusCode.UNSET, StatusCode.UNSET,
    ]  # fmt: skip
    assert [(one.attributes or {}).get("error.type") for one in roots] == [
        "engine_unavailable", "model_not_found", None,
    ]  # fmt: skip
    (broken, _) = [one for one in exporter.get_finished_spans() if one.name == "engine"]
    assert (broken.status.status_code, broken.status.description) == (StatusCode.ERROR, "ApiError")
    assert "Fergus" not in "".join(one.to_json() for one in exporter.get_finished_spans())
    assert len({one.context.trace_id for one in roots}) == 3


def test_several_at_once_keep_their_own_parts(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with traced(tmp_path) as (service, exporter), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(service, f"word {n}", stream=bool(n % 2)), range(16)))
        assert {one.status_code for one in answers} == {200}
    spans = exporter.get_finished_spans()
    roots = {one.context.span_id: one.context.trace_id for one in spans if one.parent is None}
    assert len(roots) == 16
    for part in ("queue", "engine"):
        of = [one for one in spans if one.name == part]
        assert {one.parent.span_id for one in of if one.parent} == set(roots)
        assert all(roots[one.parent.span_id] == one.context.trace_id for one in of if one.parent)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The address of a stand-in, and the (path, body) that it got."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_a_collector_gets_them_by_otlp(
    tmp_path: Path, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    engine: Any = Echo()
    made = tracing_from_environment("tiny", lambda *_, **__: None)
    with served(tmp_path, engine, ServeConfig(port=0), tracing=made) as service:
        assert ask(service).status_code == 200
        assert got == []
    ((path, body),) = got  # sent when the service ended
    assert path == "/v1/traces"
    sent = ExportTraceServiceRequest.FromString(body)
    (spans,) = sent.resource_spans
    resource = {one.key: one.value.string_value for one in spans.resource.attributes}
    assert resource["service.name"] == "tiny"
    assert resource["deployment.environment.name"] == "test"
    names = sorted(one.name for scope in spans.scope_spans for one in scope.spans)
    assert names == ["POST /v1/chat/completions", "engine", "queue"]
    assert b"Fergus" not in body


def test_a_collector_that_is_away_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.5)
    told: list[tuple[str, dict[str, Any]]] = []
    engine: Any = Echo()
    made = tracing_from_environment("tiny", lambda event, **fields: told.append((event, fields)))
    with served(tmp_path, engine, ServeConfig(port=0), tracing=made) as service:
        assert ask(service).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert {event for event, _ in told} <= {"tracing_problem"}


def test_without_an_endpoint_or_the_extra_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, **fields: Any) -> None:
        told.append((event, fields))

    assert type(tracing_from_environment("tiny", tell)) is Tracing
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "installed_version", lambda name: None)
    assert type(tracing_from_environment("tiny", tell)) is Tracing
    ((event, fields),) = told
    assert (event, fields["install"]) == (
        "tracing_not_available", 'pip install "potstill[otel]"',
    )  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert type(tracing_from_environment("tiny", tell)) is Tracing


def test_nothing_of_it_is_imported_without_an_endpoint() -> None:
    words = (
        "import sys; from potstill.serve import app, server, tracing;"
        "tracing.tracing_from_environment('x', print);"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", words], check=False, env=environment)
    assert done.returncode == 0
