"""The HTTP client between the gateway and an engine that speaks OpenAI's API.

In: bodies. Out: whole answers or events, as the engine sends them; `ApiError` where it refuses.
What is abandoned is closed at once, which frees the engine's slot. Knows no engine by name.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from potstill.core.extras import require
from potstill.serve.problems import ApiError, invalid, unavailable

CONNECT_SECONDS = 5.0
LONGEST_ANSWER = 32 * 2**20
NO_FORM = "does not match the expected"
"""llama.cpp's words for an answer that it cannot read as the JSON that it held it to."""
LOST = "The engine broke off. It is started again; try once more."


class Upstream:
    """Connections to one engine.

    key: sent as a bearer token, if there is one. connections: how many at once.
    """

    def __init__(self, base_url: str, key: str | None, connections: int, local: bool) -> None:
        self._http: Any = require("httpx2", "serve", "Serving a student")
        self.base_url, self.key = base_url.rstrip("/"), key
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = self._http.AsyncClient(
            timeout=self._http.Timeout(None, connect=CONNECT_SECONDS),
            # llama.cpp's server now and then closes a connection that it said it would keep, in
            # the moment in which it is used again; a new one to this machine costs next to nothing.
            limits=self._http.Limits(
                max_connections=connections, max_keepalive_connections=0 if local else connections
            ),
            follow_redirects=False,
            trust_env=not local,  # an engine on this machine is never asked through a proxy
            headers=headers,
        )

    async def get(self, path: str) -> Any:
        """A JSON answer. Errors: ApiError."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """A JSON answer. Errors: ApiError."""
        return await self._whole("POST", path, body)

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Each event of a stream, until the engine says that it is done. Errors: ApiError."""
        async with self._answer("POST", path, body) as answer:
            if answer.status_code != 200:
                raise refusal(answer.status_code, await self._read(answer))
            rest = b""
            async for part in answer.aiter_raw():  # not encoded; its text is read by json alone
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: [DONE]"):
                        return
                    if line.startswith((b"data:", b"error:")):
                        event = json.loads(line.partition(b":")[2])
                        if not isinstance(event, dict) or "choices" not in event:
                            raise refusal(500, event)
                        yield event
                if len(rest) > LONGEST_ANSWER:
                    raise unavailable("The engine's answer has no end.")
            raise unavailable(LOST)  # it ended without a word

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        async with self._answer(method, path, body) as answer:
            found = await self._read(answer)
            if answer.status_code != 200:
                raise refusal(answer.status_code, found)
            return found

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[Any]:
        http = self._http
        try:
            request = self._client.build_request(
                method, self.base_url + path, content=None if body is None else encoded(body)
            )
            answer = await self._client.send(request, stream=True)
            try:
                yield answer
            finally:
                await answer.aclose()
        except (http.HTTPError, http.StreamError, OSError, ValueError) as error:
            raise unavailable(LOST) from error

    async def _read(self, answer: Any) -> Any:
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > LONGEST_ANSWER:
                raise unavailable("The engine's answer has no end.")
        try:
            return json.loads(bytes(content))
        except ValueError:
            return {"message": bytes(content[:200]).decode("utf-8", "replace")}


def encoded(body: dict[str, Any]) -> bytes:
    """The body as JSON. Errors: ApiError 400 for what JSON or UTF-8 cannot say (NaN, a lone
    surrogate, a hundred thousand brackets)."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__ if isinstance(error, RecursionError) else str(error)
        raise invalid(f"The request holds what UTF-8 and JSON cannot say: {reason[:200]}.") from (
            error
        )


def refusal(status: int, answer: Any) -> ApiError:
    """What an engine's own error means to the client."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    fields = error if isinstance(error, dict) else {"message": str(error)}
    message = " ".join(str(fields.get("message", "no reason given")).split())[:500]
    kind = str(fields.get("type", "")) + str(fields.get("code", ""))
    if "context" in kind or "context size" in message or "context length" in message:
        return invalid(
            f"The prompt does not fit: {message}.", "messages", "context_length_exceeded"
        )
    if NO_FORM in message:  # the next try would end the same way, so it is no 503
        return invalid(
            "The student's answer does not come to the form that was asked for: allow it more "
            "max_tokens, or ask without response_format.",
            "response_format",
            "answer_without_form",
        )
    if status in {400, 404, 413, 415, 422}:
        return invalid(f"The engine refuses the request: {message}.", code="refused_by_engine")
    if status == 429:
        return ApiError(429, f"The engine is busy: {message}.", "engine_busy", retry_after=2)
    return unavailable(f"The engine failed: {message}.")
