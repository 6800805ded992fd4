"""A chat-completions server on 127.0.0.1 that behaves, or misbehaves, as a test tells it to.

In: requests. Out: the fake model's replies, which depend on the request alone. Each key has limits,
kept as a strict server keeps them: in a sliding minute. Notes all that it saw.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from potstill.inference.base import Request
from potstill.inference.fake import FakeModel
from potstill.records import Turn

LONGEST_RUN = 50_000  # requests; a test that asks for more has gone astray
WINDOW = 60.0
ENDLESS = 4 * 2**20


@dataclass
class Limits:
    """What a key may: None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None
    revoked: bool = False


@dataclass
class Account:
    """What a key did."""

    limits: Limits
    sent: deque[tuple[float, int]] = field(default_factory=deque)
    running: int = 0
    most_at_once: int = 0
    answered: int = 0
    tokens: int = 0
    broken: Counter[str] = field(default_factory=Counter)

    def breach(self, now: float, tokens: int) -> str | None:
        """The limit that this request breaks."""
        while self.sent and self.sent[0][0] <= now - WINDOW:
            self.sent.popleft()
        limits = self.limits
        if limits.requests_per_minute and len(self.sent) + 1 > limits.requests_per_minute:
            return "requests"
        so_far = sum(amount for _, amount in self.sent)
        if limits.tokens_per_minute and so_far + tokens > limits.tokens_per_minute:
            return "tokens"
        if limits.concurrency and self.running + 1 > limits.concurrency:
            return "concurrency"
        return None


@dataclass
class Seen:
    """One request as it came in."""

    time: float
    key: str
    body: dict[str, Any]
    digest: str
    headers: dict[str, str]


# What a request is met with: a word that `MockEndpoint._behave` knows, or (status, headers, body).
Behaviour = str | tuple[int, dict[str, str], str] | None
Chooser = Callable[[int, Seen], Behaviour]


class MockEndpoint:
    """A server in a thread of its own.

    keys: limits by key; none: no key is asked for. behave(n, seen): what the n-th request is met
    with, None: a reply. delay(n): seconds that a reply takes. models: names that it serves.
    socket: a Unix socket to listen on, instead of an address.
    """

    def __init__(
        self,
        keys: dict[str, Limits] | None = None,
        behave: Chooser = lambda n, seen: None,
        delay: Callable[[int], float] = lambda n: 0.0,
        text: Callable[[Request], str] | None = None,
        usage: bool = True,
        message: dict[str, Any] | None = None,
        finish: str | None = None,
        retry_after: str = "1",
        socket: str = "",
    ) -> None:
        self.accounts = {key: Account(limits) for key, limits in (keys or {}).items()}
        self.needs_key = keys is not None
        self.behave, self.delay, self.usage = behave, delay, usage
        self.message, self.finish, self.text = message, finish, text
        self.retry_after, self.socket = retry_after, socket
        self.model = FakeModel()
        self.seen: list[Seen] = []
        self.answered: Counter[str] = Counter()
        self.running = self.most_at_once = self.count = 0
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> MockEndpoint:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def repeated(self) -> int:
        """Answers beyond the first of each request."""
        return sum(count - 1 for count in self.answered.values())

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        if self.socket:
            server: Any = await asyncio.start_unix_server(self._connection, self.socket)
        else:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for writer in self._writers:
            writer.transport.abort()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next round

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                if lines[0].startswith("GET /health "):
                    await _send(writer, 200, "")
                    continue
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines[1:] if line)
                }
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(headers, content, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, headers: dict[str, str], content: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; whether the connection goes on."""
        body = json.loads(content)
        key = headers.get("authorization", "").removeprefix("Bearer ")
        asked = {name: value for name, value in body.items() if name != "stream"}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        seen = Seen(time.monotonic(), key, body, digest, headers)
        number = self.count
        self.count += 1
        assert self.count < LONGEST_RUN
        self.seen.append(seen)
        met = self.behave(number, seen)
        if met is not None:
            return await self._behave(met, seen, writer)
        account = self.accounts.get(key)
        if self.needs_key and (account is None or account.limits.revoked):
            said = {"error": {"message": f"Incorrect API key provided: {key}", "code": "invalid"}}
            return await _send(writer, 401, json.dumps(said))
        reply, tokens = self._reply(body)
        if account is not None:
            if breach := account.breach(seen.time, tokens):
                account.broken[breach] += 1
                said = {"error": {"message": f"Too many {breach} for {key}"}}
                return await _send(writer, 429, json.dumps(said), {"Retry-After": self.retry_after})
            account.sent.append((seen.time, tokens))
            account.running += 1
            account.most_at_once = max(account.most_at_once, account.running)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await asyncio.sleep(self.delay(number))
        finally:
            self.running -= 1
            if account is not None:
                account.running -= 1
        if body.get("stream"):
            return await _stream(writer, reply["choices"][0]["message"]["content"])
        self.answered[digest] += 1
        if account is not None:
            account.answered += 1
            account.tokens += tokens
        return await _send(writer, 200, json.dumps(reply))

    def _reply(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        turns = tuple(Turn(role=one["role"], content=one["content"]) for one in body["messages"])
        form = body.get("response_format", {})
        length = body.get("max_tokens", body.get("max_completion_tokens", 256))
        schema = form.get("json_schema", {}).get("schema")
        request = Request(turns, length, body.get("temperature", 0), seed=body.get("seed", 0))
        request = Request(turns, length, request.temperature, 1.0, request.seed, schema)
        ((_, made),) = self.model.complete([request])
        text = self.text(request) if self.text else made.text
        message = {"role": "assistant", "content": text} | (self.message or {})
        reply: dict[str, Any] = {
            "id": "mock",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                {"index": 0, "message": message, "finish_reason": self.finish or made.finish_reason}
            ],
        }
        if self.usage:
            reply["usage"] = {
                "prompt_tokens": made.prompt_tokens,
                "completion_tokens": made.completion_tokens,
                "total_tokens": made.prompt_tokens + made.completion_tokens,
            }
        return reply, made.prompt_tokens + made.completion_tokens

    async def _behave(self, met: Any, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if isinstance(met, tuple):
            status, headers, body = met
            return await _send(writer, status, body.replace("{key}", seen.key), headers)
        if met == "html":
            page = "<html><head><title>Sign in</title></head><body>Welcome</body></html>"
            return await _send(writer, 200, page, {"Content-Type": "text/html"})
        if met == "garbage":
            return await _send(writer, 200, "\x00\x7f{]garbage" * 50)
        if met == "half":
            return await _send(writer, 200, '{"choices": [{"message": {"content": "ha')
        if met == "empty":
            return await _send(writer, 200, '{"choices": []}')
        if met == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(64):
                writer.write(b"%x\r\n" % ENDLESS + b"x" * ENDLESS + b"\r\n")
                await writer.drain()
            return False
        if met == "hang":
            await asyncio.sleep(30)
        elif met == "stall":  # the head, and then nothing
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            await asyncio.sleep(30)
        elif met == "cut":  # the connection ends in the middle of a body
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"choi')
            await writer.drain()
        elif met == "nonsense":
            writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            await writer.drain()
        elif met == "stream garbage":
            return await _send(
                writer, 200, "data: {]\n\nwhat\n\n", {"Content-Type": "text/event-stream"}
            )
        else:
            assert met == "drop", met
        return False


async def _send(
    writer: asyncio.StreamWriter, status: int, body: str, headers: dict[str, str] | None = None
) -> bool:
    content = body.encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} Word\r\n{head}\r\n".encode() + content)
    await writer.drain()
    return True


async def _stream(writer: asyncio.StreamWriter, text: str) -> bool:
    events = [
        json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]})
        for piece in (text[start : start + 7] for start in range(0, len(text), 7))
    ]
    body = ": hello\n\n" + "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    return await _send(writer, 200, body, {"Content-Type": "text/event-stream"})
