"""The engine behind the gateway: a GGUF in llama.cpp's own server, or any engine by its address.

In: a GGUF file and sizes, or a base URL. Out: an `Upstream`, and whether it is ready. The server
runs in a process of its own (`engine_worker.py`): it has the interpreter to itself, an abandoned
connection frees its slot, and a crash in native code costs the requests under way, no more: it is
started again. Knows nothing of clients and keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from potstill.core.extras import check_installed
from potstill.errors import ModelError, UsageError
from potstill.inference.llamacpp import check_magic
from potstill.serve.problems import ApiError, unavailable
from potstill.serve.upstream import Upstream

START_SECONDS = 600.0
PAUSES = (0.5, 2.0, 10.0, 30.0)  # seconds before the engine is started again, after each crash
CALM_SECONDS = 60.0  # after so long without a crash the pauses begin anew
HEALTH_SECONDS = 5.0
WARM_WORDS = "The keeper opens the valve at noon and writes the time into the log. " * 2
Tell = Callable[..., None]


class Events(Protocol):
    """The way to an engine."""

    def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Each event of an answer, in the form of OpenAI's streams. Errors: ApiError."""
        ...


class Engine(Protocol):
    """Whatever answers requests."""

    local: bool
    """Whether it takes llama.cpp's own fields beside OpenAI's."""
    model: str
    """The name that the engine knows the model by."""
    context_tokens: int | None
    """Longest prompt and answer together; None: the engine knows."""

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...

    @property
    def upstream(self) -> Events:
        """Its connections. Errors: ApiError 503 while it is not ready."""
        ...

    async def start(self) -> None:
        """Returns when the first request will be as fast as the tenth. Errors: ModelError."""
        ...

    async def stop(self) -> None:
        """End it and its connections."""
        ...


@dataclass(frozen=True)
class EngineSizes:
    """threads: processor threads. parallel: requests that run at once. context_tokens: longest
    prompt and answer together, for each of them."""

    threads: int
    parallel: int
    context_tokens: int


class ChildEngine(ABC):
    """An engine in a process of its own, started again when it ends by itself.

    tell: hears of crashes, as (event, fields). A subclass opens it: `_open` starts a process by
    `_spawn`, and returns when it is warm.
    """

    command: tuple[str, ...]

    def __init__(self, threads: int, tell: Tell) -> None:
        self._threads, self._tell = threads, tell
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def process_id(self) -> int | None:
        """Of the engine's process, while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Load, warm up, and keep it running. Errors: ModelError if the file cannot be loaded."""
        await self._open()
        self._watch = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """End the process."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._close()

    @abstractmethod
    async def _open(self) -> None:
        """Start the process; returns when it is warm. Errors: ModelError."""

    @abstractmethod
    def _no_engine(self, reason: str) -> ModelError:
        """The error for an engine that cannot be started."""

    async def _spawn(self, job: dict[str, Any], longest_line: int = 2**16) -> dict[str, Any]:
        """Start the process and hand it the job; what it says when it has loaded. Errors:
        ModelError if it ends instead."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            limit=longest_line,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write((json.dumps(job) + "\n").encode())
        line = await process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        if not said or "error" in said:
            code = await process.wait()
            raise self._no_engine(said.get("error") or f"it ended with exit code {code}")
        return said

    async def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _keep_running(self) -> None:
        crashes = 0
        while True:
            began = time.monotonic()
            if self._process is not None:
                code = await self._process.wait()
                if time.monotonic() - began > CALM_SECONDS:
                    crashes = 0
                self._tell("engine_ended", exit_code=code)
                await self._close()
            await asyncio.sleep(PAUSES[min(crashes, len(PAUSES) - 1)])
            crashes += 1
            try:
                await self._open()
            except (ModelError, OSError) as error:
                self._tell("engine_not_started", reason=str(error))
            else:
                self._tell("engine_restarted", seconds=round(time.monotonic() - began, 1))


class LocalEngine(ChildEngine):
    """llama.cpp over one GGUF. tell: hears of crashes, as (event, fields)."""

    local = True
    command = (sys.executable, "-m", "potstill.serve.engine_worker")

    def __init__(self, gguf: Path, sizes: EngineSizes, tell: Tell = lambda *_, **__: None) -> None:
        check_installed("xllamacpp", "Serving a GGUF", "llamacpp")
        check_magic(gguf)
        super().__init__(sizes.threads, tell)
        self.gguf, self.sizes = gguf, sizes
        self.model = gguf.stem
        self.context_tokens: int | None = sizes.context_tokens
        self._upstream: Upstream | None = None

    @property
    def ready(self) -> bool:
        """Whether the process runs and is warm."""
        return self._upstream is not None

    @property
    def upstream(self) -> Upstream:
        """Its connections. Errors: ApiError 503 while it is (re)started."""
        if self._upstream is None:
            raise unavailable("The engine is starting.", "engine_starting")
        return self._upstream

    async def _open(self) -> None:
        key = secrets.token_hex(32)
        job = {
            "gguf": str(self.gguf),
            "threads": self.sizes.threads,
            "parallel": self.sizes.parallel,
            "context_tokens": self.sizes.context_tokens,
            "key": key,
        }
        upstream = None
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await self._spawn(job)
                connections = self.sizes.parallel + 4
                upstream = Upstream(said["address"], key, connections, local=True)
                await warm(upstream, self.sizes.parallel)
        except BaseException as error:
            if upstream is not None:
                await upstream.close()
            await self._close()
            if isinstance(error, TimeoutError):
                raise self._no_engine(f"no answer within {START_SECONDS:g} s") from error
            if isinstance(error, ApiError):
                raise self._no_engine(error.message) from error
            raise
        self._upstream = upstream

    def _no_engine(self, reason: str) -> ModelError:
        return ModelError(
            f"llama.cpp cannot serve {self.gguf}: {reason.rstrip('.')}.",
            "The file may be truncated or need a newer engine: export it again, or update "
            "xllamacpp. It may also need more memory: lower --parallel or --context.",
        )

    async def _close(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            await upstream.close()
        await super()._close()


class RemoteEngine:
    """Any server with OpenAI's API: vLLM, llama-server. model "": the first one that it lists."""

    local = False

    def __init__(self, base_url: str, model: str, key: str | None, connections: int) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"{base_url} is no address of an engine.", "Write --engine http://127.0.0.1:8080"
            )
        self.model = model
        self.context_tokens: int | None = None
        local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        base = base_url.rstrip("/").removesuffix("/v1")
        self._upstream = Upstream(base, key, connections + 4, local)
        self._healthy = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it answered the last time it was looked at."""
        return self._healthy

    @property
    def upstream(self) -> Upstream:
        """Its connections."""
        return self._upstream

    async def start(self) -> None:
        """Ask for its models. Errors: ModelError if nobody answers or the model is not there."""
        try:
            listed = await self._models()
        except ApiError as error:
            raise ModelError(
                f"No engine answers at {self._upstream.base_url}: {error.message}",
                "Start it first, or check the address and POTSTILL_ENGINE_KEY.",
            ) from error
        if not self.model and listed:
            self.model = listed[0]
        if self.model not in listed:
            raise ModelError(
                f"The engine at {self._upstream.base_url} has no model {self.model}.",
                f"It has {', '.join(listed) or 'none'}.",
            )
        self._healthy = True
        self._watch = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Close the connections; the engine itself is somebody else's."""
        if self._watch is not None:
            self._watch.cancel()
        await self._upstream.close()

    async def _models(self) -> list[str]:
        answer = await self._upstream.get("/v1/models")
        rows: list[Any] = answer.get("data", []) if isinstance(answer, dict) else []
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            try:
                async with asyncio.timeout(HEALTH_SECONDS):
                    self._healthy = self.model in await self._models()
            except (ApiError, TimeoutError):
                self._healthy = False


async def warm(upstream: Upstream, parallel: int) -> None:
    """Read and write in every slot at once: weights and caches are in memory afterwards, each
    kernel was used, the connections are open. Errors: ApiError."""
    bodies = [
        {"prompt": f"{slot} {WARM_WORDS}", "n_predict": 4, "temperature": 0.0, "id_slot": slot}
        for slot in range(parallel)
    ]
    await asyncio.gather(*(upstream.post("/completion", body) for body in bodies))
    turn = {"role": "user", "content": WARM_WORDS}  # the chat template is read at its first use
    chat = {"messages": [turn], "max_tokens": 2, "stream": True}
    async for _ in upstream.events("/v1/chat/completions", chat):
        pass
