"""Who is let in, who waits, who is sent away; and what clients do that no client should."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from served import SECONDS, EngineStandIn, Served, served

from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.gateway import ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.problems import ApiError

ASKED: Any = [{"role": "user", "content": "How many litres?"}]


class SlowEngine(EngineStandIn):
    """Writes a word, then waits until the test lets it go on. Counts what is under way."""

    def __init__(self) -> None:
        self.running = self.most = self.begun = self.cancelled = 0
        self.go = threading.Event()
        self.words = 3
        self.ready = True

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.running += 1
        self.begun += 1
        self.most = max(self.most, self.running)
        try:
            for word in range(self.words):
                yield {"choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
                while word == 0 and not self.go.is_set():
                    await asyncio.sleep(0.005)
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@pytest.fixture
def engine() -> Iterator[SlowEngine]:
    one = SlowEngine()
    yield one
    one.go.set()


def config(**fields: Any) -> ServeConfig:
    return ServeConfig(**({"port": 0, "parallel": 2, "queue": 1, "threads": 1} | fields))


def ask(service: Served, key: str = "none", **more: Any) -> Any:
    with service.client(key) as client:
        return client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=9, **more)


def ask_streaming(service: Served) -> list[Any]:
    with service.client() as client:
        return list(
            client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=9, stream=True)
        )


def test_a_full_queue_sends_away_and_loses_nobody(tmp_path: Path, engine: SlowEngine) -> None:
    with served(tmp_path, engine, config()) as service, ThreadPoolExecutor(8) as pool:
        first = [pool.submit(ask, service) for _ in range(3)]
        until(lambda: service.gateway.gate.running == 2 and service.gateway.gate.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(service)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        engine.go.set()
        assert {one.result(SECONDS).choices[0].message.content for one in first} == {"0 1 2 "}
        assert engine.most == 2
        assert service.gateway.gate.running == 0
        ask(service)


def test_who_waits_too_long_is_told_so(tmp_path: Path, engine: SlowEngine) -> None:
    few = config(parallel=1, queue_seconds=0.05)
    with served(tmp_path, engine, few) as service, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, service)
        until(lambda: engine.running == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(service)
        assert caught.value.code == "queue_timeout"
        engine.go.set()
        running.result(SECONDS)


def test_an_answer_beyond_its_deadline_ends(tmp_path: Path, engine: SlowEngine) -> None:
    with served(tmp_path, engine, config(deadline_seconds=0.05)) as service:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(service)
        assert caught.value.status_code == 408
        with pytest.raises(openai.APIError, match="took longer"):
            ask_streaming(service)
        until(lambda: engine.running == 0 and service.gateway.gate.running == 0)
        assert engine.cancelled == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(
    tmp_path: Path, engine: SlowEngine, stream: bool
) -> None:
    with served(tmp_path, engine, config(parallel=1)) as service:
        raw = post(service, {"model": "tiny", "messages": ASKED, "stream": stream})
        until(lambda: engine.running == 1)
        raw.close()
        until(lambda: engine.cancelled == 1 and service.gateway.gate.running == 0)
        waiting = post(service, {"model": "tiny", "messages": ASKED, "stream": stream})
        until(lambda: engine.running == 1)
        gone = post(service, {"model": "tiny", "messages": ASKED, "stream": stream})
        until(lambda: service.gateway.gate.waiting == 1)
        gone.close()
        until(lambda: service.gateway.gate.waiting == 0)
        engine.go.set()
        with closing(waiting):
            assert b"200 OK" in waiting.recv(100)
        until(lambda: engine.running == 0)
        assert b"potstill_abandoned_total" in service.gateway.figures.text()


def test_a_client_that_reads_nothing_holds_no_slot(tmp_path: Path, engine: SlowEngine) -> None:
    engine.words = 60_000  # more than the system's buffers hold
    engine.go.set()
    with served(tmp_path, engine, config(parallel=1, stall_seconds=0.5)) as service:
        lazy = post(service, {"model": "tiny", "messages": ASKED, "stream": True})
        until(lambda: engine.begun == 1 and engine.running == 0)
        engine.words = 3
        assert ask(service).choices[0].message.content == "0 1 2 "
        until(lambda: "client_stalled" in service.log.getvalue())
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            until(lambda: not service.server.server_state.connections)
        lazy.close()


def test_a_client_that_writes_a_byte_at_a_time_is_let_go(
    tmp_path: Path, engine: SlowEngine
) -> None:
    engine.go.set()
    with served(tmp_path, engine, config(body_seconds=0.3)) as service:
        slow = post(service, {"model": "tiny", "messages": ASKED}, cut=20)
        assert ask(service).choices[0].message.content == "0 1 2 "
        status, body = reply(slow)
        assert status == 408
        assert body["error"]["code"] == "slow_request"


def test_a_document_of_which_half_comes_is_no_failure_of_the_server(
    tmp_path: Path, engine: SlowEngine
) -> None:
    kept = Corpus([], tmp_path / "documents", lambda file, name, work: [])
    with served(tmp_path, engine, config(), corpus=kept) as service:
        raw = connect(service)
        raw.sendall(
            b"POST /v1/documents?name=a.md HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nhalf of it"
        )
        raw.close()
        until(lambda: '"error": "incomplete"' in service.log.getvalue())
        assert '"failed"' not in service.log.getvalue()
        assert list((tmp_path / "uploads").iterdir()) == []


def test_a_client_that_reads_a_byte_at_a_time_gets_it_all(
    tmp_path: Path, engine: SlowEngine
) -> None:
    engine.go.set()
    with served(tmp_path, engine, config(parallel=1)) as service:
        lazy = post(service, {"model": "tiny", "messages": ASKED, "stream": True})
        got = lazy.recv(1)
        until(lambda: engine.begun == 1 and engine.running == 0)  # it holds no slot meanwhile
        assert ask(service).choices[0].message.content == "0 1 2 "
        while b"data: [DONE]" not in got:
            part = lazy.recv(1)
            assert part
            got += part
        lazy.close()


def test_sigterm_lets_answers_finish_and_begins_none(tmp_path: Path, engine: SlowEngine) -> None:
    with served(tmp_path, engine, config()) as service, ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(ask_streaming, service)
        until(lambda: engine.running == 1)
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        until(lambda: not reachable(service))
        engine.go.set()
        assert streamed.result(SECONDS)[-1].choices[0].finish_reason == "stop"
        stopping.join(SECONDS)
        assert not service.gateway.ready


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_finish_in_time_is_cut(
    tmp_path: Path, engine: SlowEngine, stream: bool
) -> None:
    with served(tmp_path, engine, config(parallel=1, drain_seconds=1)) as service:
        body = {"model": "tiny", "messages": ASKED, "stream": stream}
        running = post(service, body)
        until(lambda: engine.running == 1)
        waiting = post(service, body)
        until(lambda: service.gateway.gate.waiting == 1)
        service.stop()
        assert (engine.running, engine.begun, engine.cancelled) == (0, 1, 1)
        running.close()
        waiting.close()


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_keys_open_what_their_scopes_say(tmp_path: Path, engine: SlowEngine, keys: KeyFile) -> None:
    engine.go.set()
    chat = keys.add("alice", ("chat",), KeyLimits())
    watcher = keys.add("watcher", ("metrics",), KeyLimits())
    with served(tmp_path / "serve", engine, config(), keys=keys) as service:
        assert ask(service, chat).choices[0].message.content == "0 1 2 "
        for wrong in ("none", chat[:-1], chat + "A", "x" * 9000, "", f"pst_{'0' * 12}_{'A' * 43}"):
            status, body = get(service, "/v1/models", wrong)
            assert status == 401
            assert body["error"]["code"] == "invalid_api_key"
        assert get(service, "/v1/models", watcher)[0] == 403
        assert get(service, "/metrics", chat)[0] == 403
        assert get(service, "/v1/nowhere", "none")[0] == 401
        assert get(service, "/health", "")[0] == get(service, "/ready", "")[0] == 200
        keys.revoke("alice")
        with pytest.raises(openai.AuthenticationError):
            ask(service, chat)
        audit = (tmp_path / "serve" / "audit.jsonl").read_text()
        assert audit.count('"refused"') >= 9
        for text in (audit, service.log.getvalue(), keys.path.read_text()):
            for secret in (chat, watcher):
                assert secret.rsplit("_", 1)[1][:20] not in text
    assert keys.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (KeyLimits(requests_per_minute=2), "requests_limit"),
        (KeyLimits(tokens_per_minute=30), "tokens_limit"),
    ],
)
def test_a_key_has_its_limits_for_itself(
    tmp_path: Path, engine: SlowEngine, keys: KeyFile, limits: KeyLimits, code: str
) -> None:
    engine.go.set()
    greedy, other = keys.add("greedy", SCOPES, limits), keys.add("other", SCOPES, KeyLimits())
    with served(tmp_path / "serve", engine, config(), keys=keys) as service:
        with pytest.raises(openai.RateLimitError) as caught:
            deque((ask(service, greedy) for _ in range(20)), 0)
        assert caught.value.code == code
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        ask(service, other)


def test_a_key_has_no_more_at_once_than_it_may(
    tmp_path: Path, engine: SlowEngine, keys: KeyFile
) -> None:
    key = keys.add("one", SCOPES, KeyLimits(concurrency=1))
    with (
        served(tmp_path / "serve", engine, config(), keys=keys) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(ask, service, key)
        until(lambda: engine.running == 1)
        with pytest.raises(openai.RateLimitError, match="at once"):
            ask(service, key)
        engine.go.set()
        running.result(SECONDS)
        ask(service, key)


GARBAGE = [
    (b"{", 400, "invalid_json"),
    (b"", 400, "invalid_value"),
    (b"\xff\xfe{}", 400, "invalid_json"),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xc3"}]}', 400, "invalid_json"),
    (
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        400,
        "invalid_json",  # half a character: UTF-8 has none, but Python's json reads it
    ),
    (
        '{"model": "tiny", "messages": [{"role": "user", "content": "a"}]}'.encode("utf-16-le"),
        400,
        "invalid_json",
    ),
    (b"[" * 200_000, 400, "invalid_json"),
    (b"null", 400, "invalid_value"),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": NaN}', 400, None),
    (b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}", 400, None),
    (b" " * 1_000_001, 413, "too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), GARBAGE)
def test_garbage_is_the_clients_error(
    tmp_path: Path, engine: SlowEngine, body: bytes, status: int, code: str | None
) -> None:
    engine.go.set()
    with served(tmp_path, engine, config()) as service:
        found, error = reply(post(service, body))
        assert found == status
        assert set(error["error"]) == {"message", "type", "param", "code"}
        assert code in (None, error["error"]["code"])
        assert engine.begun == 0


def test_ways_that_lead_nowhere(tmp_path: Path, engine: SlowEngine) -> None:
    with served(tmp_path, engine, config()) as service:
        for head, status in (
            (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
            (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            (b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 415),
            (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
            (b"GET /v1/models HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 403),
            (b"GET /no HTTP/1.1\r\nHost: [::1]\r\n\r\n", 404),
            (b"GET /no HTTP/1.1\r\nHost: LOCALHOST:8000\r\n\r\n", 404),
            (b"\x00\x01 what\r\n\r\n", 400),
            (b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        ):
            raw = connect(service)
            raw.sendall(head)
            found, body = reply(raw)
            assert found == status, head
            assert set(body["error"]) == {"message", "type", "param", "code"}


def test_responses_carry_secure_headers_and_no_cors(tmp_path: Path, engine: SlowEngine) -> None:
    with served(tmp_path, engine, config()) as service, service.client() as client:
        headers = client.models.with_raw_response.list(
            extra_headers={"Origin": "https://page.example"}
        ).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_a_named_origin_may_ask(tmp_path: Path, engine: SlowEngine) -> None:
    allowed = config(cors=("https://page.example",))
    with served(tmp_path, engine, allowed) as service, service.client() as client:
        for origin, there in (("https://page.example", True), ("https://other.example", False)):
            headers = client.models.with_raw_response.list(extra_headers={"Origin": origin}).headers
            assert ("access-control-allow-origin" in headers) == there


def test_an_engine_that_fails_is_said_to_have_failed(tmp_path: Path, engine: SlowEngine) -> None:
    async def broken(path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"choices": [{"index": 0, "delta": {"content": "a"}}]}
        raise ApiError(503, "The engine broke off.", "engine_unavailable", retry_after=2)

    engine.events = broken  # type: ignore[method-assign]
    with served(tmp_path, engine, config()) as service:
        with pytest.raises(openai.InternalServerError, match="broke off"):
            ask(service)
        with pytest.raises(openai.APIError, match="broke off"):
            ask_streaming(service)


def connect(service: Served) -> socket.socket:
    host, port = service.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), SECONDS)


def reachable(service: Served) -> bool:
    try:
        connect(service).close()
    except OSError:
        return False
    return True


def post(service: Served, body: Any, cut: int | None = None) -> socket.socket:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    raw = connect(service)
    raw.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
    )
    try:
        raw.sendall(content[:cut])
    except OSError:
        assert len(content) > 1_000_000  # it was refused before all of it was sent
    return raw


def reply(raw: socket.socket) -> tuple[int, Any]:
    with closing(raw):
        content = b""
        while b"\r\n\r\n" not in content:
            part = raw.recv(65536)
            assert part, content
            content += part
        head, _, body = content.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        while len(body) < length:
            body += raw.recv(65536)
    return int(head.split()[1]), json.loads(body)


def get(service: Served, path: str, key: str) -> tuple[int, Any]:
    raw = connect(service)
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    )
    return reply(raw)
