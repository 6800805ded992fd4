"""A real service on a free port of 127.0.0.1, in a thread, over a tiny GGUF.

In: a GGUF, settings. Out: its address, its gateway, and the official client. Stops with the block.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from potstill.serve.auth import KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.engine import Engine, EngineSizes, LocalEngine
from potstill.serve.feedback import FeedbackStore
from potstill.serve.gateway import Gateway, ServeConfig
from potstill.serve.monitor import Log
from potstill.serve.server import Server, listen
from potstill.serve.tracing import Tracing

SECONDS = 60.0


@dataclass
class Served:
    """A running service."""

    address: str
    gateway: Gateway
    server: Server
    thread: threading.Thread
    log: io.StringIO

    def client(self, key: str = "none", **more: Any) -> openai.OpenAI:
        """The official client, which tries nothing twice."""
        return openai.OpenAI(
            base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=SECONDS, **more
        )

    def stop(self) -> None:
        """As SIGTERM does."""
        self.gateway.draining = True
        self.server.should_exit = True
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


class EngineStandIn:
    """An engine of a test's own: always ready, its own connections. A subclass says `events`."""

    local, model, context_tokens, ready = False, "stand-in", None, True

    @property
    def upstream(self) -> Any:
        return self

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def sizes(parallel: int = 2, context: int = 256) -> EngineSizes:
    return EngineSizes(threads=1, parallel=parallel, context_tokens=context)


def plain_turn(passage: str, question: str) -> str:
    return f"{passage}\n\n{question}" if passage else question


@contextmanager
def served(
    folder: Path,
    engine: Path | Engine,
    config: ServeConfig | None = None,
    *,
    keys: KeyFile | None = None,
    corpus: Corpus | None = None,
    embedding_model: str | None = None,
    ask: Callable[[str, str], str] = plain_turn,
    tracing: Tracing | None = None,
    **more: Any,
) -> Iterator[Served]:
    """engine: a GGUF for llama.cpp, or an engine of the test's own. more: of the gateway."""
    config = config or ServeConfig(port=0, parallel=2, context_tokens=256, threads=1)
    if isinstance(engine, Path):
        engine = LocalEngine(engine, sizes(config.parallel, config.context_tokens))
    folder.mkdir(parents=True, exist_ok=True)
    log = io.StringIO()
    gateway = Gateway(
        name="tiny",
        config=config,
        engine=engine,
        folder=folder,
        keys=keys,
        ask=ask,
        feedback=FeedbackStore(folder / "feedback.sqlite"),
        corpus=corpus,
        embedding_model=embedding_model,
        log=Log(log),
        tracing=tracing or Tracing(),
        **more,
    )
    listening = listen(config)
    server = Server(gateway)
    started, addresses, problems = threading.Event(), list[str](), list[BaseException]()

    def on_start(address: str) -> None:
        addresses.append(address)
        started.set()

    def run() -> None:
        try:
            asyncio.run(server.run_at(listening, on_start))
        except BaseException as error:
            problems.append(error)
        finally:
            listening.close()
            started.set()

    thread = threading.Thread(target=run, name="served")
    thread.start()
    assert started.wait(3 * SECONDS)  # a model is loaded meanwhile, on a machine that may be busy
    if problems:
        thread.join()
        raise problems[0]
    one = Served(addresses[0], gateway, server, thread, log)
    try:
        yield one
    finally:
        one.stop()
