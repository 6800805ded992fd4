"""A model behind an address that speaks OpenAI's chat completions: vLLM, llama-server, hosted ones.

In: an endpoint's config, the model's name there, requests. Out: replies. The HTTP client and the
loop it runs in, in a thread of its own, behind the synchronous port of `base.py`.
What goes when is `traffic.py`; what an answer means is `answers.py`. Follows no redirect, sends a
key to no other host, reads no endless body.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from potstill import __version__
from potstill.core.extras import require
from potstill.errors import ModelError, TeacherError
from potstill.inference.answers import Answer, Failure, read, read_event, shorten
from potstill.inference.base import Reply, Request
from potstill.inference.dialect import Dialect
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.keys import Key, KeyPool, Lease, open_pool
from potstill.inference.sizes import text_tokens
from potstill.inference.traffic import Traffic

LONGEST_BODY = 32 * 2**20
CLOSE_SECONDS = 10.0
T = TypeVar("T")


class EndpointModel:
    """A TextModel behind an address.

    warn: is told of a key that is refused, and of what the endpoint does not take. pool: its keys,
    if they are not its own. socket: a Unix socket that stands for the address.
    Errors: MissingExtraError; ModelError if no key is set; TeacherError, from `complete` and
    `stream`, if the endpoint is of no use.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        model: str,
        warn: Callable[[str], None] = lambda text: None,
        pool: KeyPool | None = None,
        socket: Path | None = None,
    ) -> None:
        self._http: Any = require("httpx2", "endpoint", "A teacher behind an address")
        self.endpoint = endpoint
        self.pool = pool or open_pool(endpoint, time.monotonic(), random.random, warn)
        self._warn = warn
        self._dialect = Dialect(endpoint, model)
        self._socket = socket
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._traffic: Traffic | None = None

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come. What is abandoned is cancelled."""
        self._open()
        traffic, loop = self._traffic, self._loop
        assert traffic is not None
        assert loop is not None
        done: queue.SimpleQueue[tuple[int, Reply] | None] = queue.SimpleQueue()
        traffic.unread = 0

        async def work() -> None:
            try:
                await traffic.run(iter(requests), done.put)
            finally:
                done.put(None)

        running = asyncio.run_coroutine_threadsafe(work(), loop)
        with _abandoned(running, done):
            for item in iter(done.get, None):
                yield item
                loop.call_soon_threadsafe(traffic.taken)
        running.result()

    def stream(self, request: Request) -> Iterator[str]:
        """Pieces of one reply. Errors: TeacherError if the endpoint refuses or breaks off."""
        self._open()
        loop = self._loop
        assert loop is not None
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        async def work() -> None:
            try:
                async for piece in self._pieces(request):
                    pieces.put(piece)
            finally:
                pieces.put(None)

        running = asyncio.run_coroutine_threadsafe(work(), loop)
        with _abandoned(running, pieces):
            yield from iter(pieces.get, None)
        running.result()

    def count_tokens(self, text: str) -> int:
        """About how many: the tokenizer is not here."""
        return text_tokens(text)

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """Errors: ModelError always: the tokenizer is not here."""
        raise ModelError(
            f"The tokens of {self._dialect.model} are not known here: it is behind an address.",
            "Name a local model where tokens are needed.",
        )

    def close(self) -> None:
        """Close connections and end the thread."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._in(loop, loop.shutdown_asyncgens())  # of replies that nobody read to their end
        self._in(loop, self._client.aclose())
        loop.call_soon_threadsafe(loop.stop)
        assert self._thread is not None
        self._thread.join(CLOSE_SECONDS)
        loop.close()

    def _open(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._in(self._loop, self._start())

    async def _start(self) -> None:
        seconds, most = self.endpoint, sum(key.width.most for key in self.pool.keys)
        limits = self._http.Limits(max_connections=None, max_keepalive_connections=most)
        socket = self._socket and str(self._socket)
        self._client = self._http.AsyncClient(
            timeout=self._http.Timeout(None, connect=seconds.connect_seconds),
            limits=limits,
            transport=socket and self._http.AsyncHTTPTransport(uds=socket, limits=limits),
            follow_redirects=False,
            trust_env=not _is_local(self.endpoint.base_url),
            headers={
                "User-Agent": f"potstill/{__version__}",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
            },
        )
        self._traffic = Traffic(self.endpoint, self._dialect, self.pool, self._send, self._warn)

    def _in(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(CLOSE_SECONDS)

    @asynccontextmanager
    async def _answered(self, body: dict[str, Any], key: Key) -> AsyncIterator[Any]:
        """The answer to one request, its head only, within the time that is given for it.

        Errors: _NoAnswerError with a reason. A client's own exception may quote a header, so it is
        never shown as it is, nor chained.
        """
        http, seconds = self._http, self.endpoint
        stage, limit = "the first byte of a reply", seconds.first_byte_seconds
        reason = None
        try:
            async with asyncio.timeout(seconds.timeout_seconds):
                request = self._client.build_request(
                    "POST", seconds.url, content=json.dumps(body).encode(), headers=key.headers
                )
                async with asyncio.timeout(seconds.first_byte_seconds):
                    answer = await self._client.send(request, stream=True)
                stage, limit = "a whole reply", seconds.timeout_seconds
                try:
                    yield answer
                finally:
                    await answer.aclose()
        except TimeoutError:
            limit = min(limit, seconds.timeout_seconds)
            reason = f"it did not send {stage} within {limit:g} seconds"
        except http.ConnectTimeout:
            reason = f"no connection within {seconds.connect_seconds:g} seconds"
        except http.ConnectError as error:
            reason = f"no connection ({error})"
        except (http.HTTPError, http.InvalidURL, http.StreamError, OSError) as error:
            reason = f"the connection broke ({error or type(error).__name__})"
        if reason is not None:
            raise _NoAnswerError(self.pool.scrub(reason)) from None

    async def _send(self, body: dict[str, Any], key: Key) -> Answer | Failure:
        """Send one body once."""
        try:
            async with self._answered(body, key) as answer:
                return await _read(answer)
        except _NoAnswerError as error:
            return Failure("retry", str(error))

    async def _pieces(self, request: Request) -> AsyncIterator[str]:
        """One reply as a stream; what is thought aloud first is left out."""
        while not isinstance(lease := self._lease(request), Lease):
            await asyncio.sleep(0.05 if lease is None else lease)
        thoughts = _Thoughts()
        reason = None
        try:
            async with self._answered(
                self._dialect.body(request, stream=True), lease.key
            ) as answer:
                if answer.status_code != 200:
                    failure = await _read(answer)
                    reason = failure.reason if isinstance(failure, Failure) else "no stream"
                else:
                    async for line in answer.aiter_lines():
                        if (piece := read_event(line)) is None:
                            break
                        if piece := thoughts.after(piece):
                            yield self.pool.scrub_reply(piece)
        except (_NoAnswerError, ValueError) as error:
            reason = str(error)
        finally:
            self.pool.give_back(lease)
        if reason is not None:
            reason = shorten(self.pool.scrub(reason))
            raise TeacherError(
                f"{self.endpoint.base_url} refused or broke off: {reason}."
            ) from None

    def _lease(self, request: Request) -> Lease | float | None:
        assert self._traffic is not None
        tokens = self._traffic.sizes.tokens(request) + request.max_tokens
        return self.pool.lease(tokens, time.monotonic())


@contextmanager
def _abandoned(running: Future[None], waiting: queue.SimpleQueue[Any]) -> Iterator[None]:
    """If the block is left before its end, wait until nothing of what it read runs any more."""
    try:
        yield
    except BaseException:
        running.cancel()
        with suppress(queue.Empty):
            while waiting.get(timeout=CLOSE_SECONDS) is not None:
                pass
        raise


async def _read(answer: Any) -> Answer | Failure:
    content = bytearray()
    async for part in answer.aiter_bytes():
        content += part
        if len(content) > LONGEST_BODY:
            return Failure("retry", "its answer has no end")
    return read(answer.status_code, answer.headers, bytes(content), time.time())


class _NoAnswerError(Exception):
    """No answer came, for this reason."""


class _Thoughts:
    """Leaves out what a stream thinks aloud at its beginning, between <think> and </think>."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"

    def after(self, piece: str) -> str:
        """What may be shown of a piece."""
        if self._state == "reply":
            return piece
        self._held += piece
        text = self._held.lstrip()
        if self._state == "start":
            if len(text) < len("<think>") and "<think>".startswith(text):
                return ""
            self._state = "thinking" if text.startswith("<think>") else "reply"
        if self._state == "thinking":
            _, end, text = text.partition("</think>")
            text = text.lstrip()
            if not end or not text:
                return ""
            self._state = "reply"
        return text


def _is_local(url: str) -> bool:
    """Whether an address is this machine's own: never asked through a proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
