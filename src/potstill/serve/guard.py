"""What stands before every route: who asks, how much is sent, how fast, and what is written down.

In: raw requests. Out: the same with a key and an id, or a refusal as an error object; security
headers on every response; one log line a request. A body is read whole, within its limits, before
a route sees it. Plain ASGI, so that a stream passes through untouched. Knows no route's meaning.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.errors import PotstillError
from potstill.serve.auth import ANYONE
from potstill.serve.gateway import Gateway
from potstill.serve.problems import ApiError, unavailable
from potstill.serve.tracing import Span

OPEN = ("/health", "/ready", "/openapi.json")
"""Paths that say nothing about anybody and need no key."""
UPLOADS = "/v1/documents"
SECURE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


class Guard:
    """Wraps the application. takes: whether a path takes the method of a request."""

    def __init__(self, app: ASGIApp, gateway: Gateway, takes: Callable[[Scope], bool]) -> None:
        self._app, self._gateway, self._takes = app, gateway, takes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = _Told(scope, send)
        with self._gateway.tracing.request(scope["method"], scope["headers"]) as span:
            told.trace = span.trace
            await self._guarded(scope, receive, told)
            self._tell(span, scope, told)

    async def _guarded(self, scope: Scope, receive: Receive, told: _Told) -> None:
        try:
            scope["state"] = {"id": told.id, "key": self._admitted(scope)}
            body = await self._body(scope, receive)
            await self._app(
                scope, _again(body, receive) if body is not None else receive, told.send
            )
        except ApiError as error:
            await told.refuse(error)
        except PotstillError as error:  # of the key file
            await told.refuse(unavailable(str(error), "store_unavailable"))
        except TimeoutError:
            told.error = "client_stalled"
        except Exception as error:
            self._gateway.log("failed", request=told.id, error=f"{type(error).__name__}: {error}")
            await told.refuse(ApiError(500, "The server failed in a way nobody foresaw.", "failed"))
        finally:
            self._note(scope, told)

    def _admitted(self, scope: Scope) -> Any:
        """The key of the request. Errors: ApiError 401, 403."""
        path, headers = scope["path"], _headers(scope)
        keys = self._gateway.keys
        if keys is None:
            host = _name_in(headers.get(b"host", b"").decode("latin-1"))
            if host not in LOCAL_NAMES | {self._gateway.config.host}:
                # A page of the web whose name was made to point here (DNS rebinding).
                raise ApiError(403, f"This server is not called {host[:80]}.", "wrong_host")
            return ANYONE
        if path in OPEN:
            return ANYONE
        kind, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return keys.check(presented.strip() if kind.lower() == "bearer" else "", _scope_of(path))

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where the route reads it itself. Errors: ApiError."""
        if scope["method"] != "POST" or not self._takes(scope):
            return None  # what no route takes is refused without a look at it
        config, headers = self._gateway.config, _headers(scope)
        upload = scope["path"] == UPLOADS
        wanted = "application/octet-stream" if upload else "application/json"
        kind = headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
        if kind != wanted:  # what a foreign page may send without asking first is never taken
            raise ApiError(415, f"The content type has to be {wanted}.", "wrong_content_type")
        limit = config.document_bytes if upload else config.body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        if upload:
            return None
        content = bytearray()
        try:
            async with asyncio.timeout(config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "The request ended early.", "incomplete")
                    content += message.get("body", b"")
                    if len(content) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body"):
                        return _sayable(bytes(content))
        except TimeoutError as error:
            raise ApiError(
                408, f"The request was not sent within {config.body_seconds:g} s.", "slow_request"
            ) from error

    def _tell(self, span: Span, scope: Scope, told: _Told) -> None:
        """What the trace says of the request: nothing that anybody asked or was answered."""
        state = scope.get("state", {})
        about = {"status": told.status, "error": told.error, "request": told.id}
        if key := state.get("key"):
            about["key"] = key.id
        if work := state.get("work"):
            about |= {"model": work.model, "response": work.id} | (work.usage or {})
            about["queued_seconds"] = work.queued_seconds
            about["first_token_seconds"] = work.first_token_seconds
        span.end(f"{scope['method']} {_route(scope)}", about)

    def _note(self, scope: Scope, told: _Told) -> None:
        """One line, and the figures."""
        gateway, state = self._gateway, scope.get("state", {})
        route = _route(scope)
        seconds = time.monotonic() - told.began
        gateway.figures.requests.labels(route, str(told.status)).inc()
        gateway.figures.seconds.labels(route).observe(seconds)
        if told.error:
            gateway.figures.errors.labels(told.error).inc()
        if told.status in (401, 403):
            gateway.audit("refused", request=told.id, status=told.status, client=_client(scope))
        if scope["path"] in OPEN and told.status == 200:
            return  # asked every few seconds by those who watch
        line: dict[str, Any] = {
            "request": told.id,
            "method": scope["method"],
            "route": route,
            "status": told.status,
            "milliseconds": round(1000 * seconds, 1),
            "client": _client(scope),
        }
        if key := state.get("key"):
            line["key"] = key.id
        if told.trace:
            line["trace"] = told.trace
        if told.error:
            line["error"] = told.error
        if work := state.get("work"):
            line |= {"model": work.model, "response": work.id} | (work.usage or {})
            line["queued_milliseconds"] = round(1000 * work.queued_seconds, 1)
            line["variant"] = work.variant
            if work.first_token_seconds is not None:
                line["first_token_milliseconds"] = round(1000 * work.first_token_seconds, 1)
            if gateway.config.log_prompts:
                line["messages"] = [
                    one | {"content": gateway.mask(one["content"])} for one in work.messages
                ]
                line["answer"] = gateway.mask(work.answer)
        gateway.log("request", **line)


class _Told:
    """What the client was told."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = f"req-{secrets.token_hex(12)}"
        self.began = time.monotonic()
        self.status = 0
        self.error = self.trace = ""
        self._scope, self._send = scope, send

    async def send(self, message: Message) -> None:
        """Pass a message on, with the headers that every response has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            there = {name.lower() for name, _ in headers}
            headers += [one for one in SECURE if one[0] not in there]
            self.error = dict(headers).pop(b"x-error", b"").decode()
            headers = [one for one in headers if one[0] != b"x-error"]
            headers.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """The error object, unless something was sent already."""
        if self.status:
            return
        body = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-error", (error.code or "").encode()),
            *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
        ]
        if error.status in (408, 413, 415):  # the rest of the body is not waited for
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more for the route; after it what the client really does."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _sayable(body: bytes) -> bytes:
    """The body. Errors: ApiError if it is not UTF-8, or an escape in it stands for half a
    character, which no text can hold and no file could be written with. Python's json takes both,
    and other encodings."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "The body is not UTF-8.", "invalid_json") from error
    if not json.detect_encoding(body).startswith("utf-8"):
        raise ApiError(400, "The body is not UTF-8.", "invalid_json")
    if HALF.search(body):
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "The body is not valid JSON.", "invalid_json") from error
    return body


def _scope_of(path: str) -> str:
    if path in ("/metrics", "/drift"):
        return "metrics"
    if path.startswith("/v1/documents"):
        return "documents"
    return "feedback" if path.startswith("/v1/feedback") else "chat"


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "") or "none"


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _name_in(host: str) -> str:
    """A Host header without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit} bytes.", "too_large")
