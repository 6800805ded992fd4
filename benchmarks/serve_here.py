"""A service in this process for a benchmark: keys, a document, feedback, a GGUF in llama.cpp.

In: a folder, a GGUF, sizes. Out: its port, a key of all scopes, its gateway and its log, until the
block ends. Knows no measurement.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import InputError
from potstill.records import Chunk
from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.engine import EngineSizes, LocalEngine
from potstill.serve.feedback import FeedbackStore
from potstill.serve.gateway import Gateway, ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.monitor import Log
from potstill.serve.server import Server, listen

TEXT = "The boiler of unit 7 holds 1250 litres."
START_SECONDS = 300.0
DEADLINE_SECONDS = 20.0
"""Of an answer. 257 tokens beside seven clients that ask without a pause took 31 s on two cores: it
is the service that must end them, before a client calls it a hang."""


def corpus_of(folder: Path) -> Corpus:
    """One passage; an added file is one more."""
    where = {"id": "c", "document": "d", "source": "h.md", "start": 0, "end": len(TEXT)}
    own = Chunk.model_validate({**where, "tokens": 8, "text": TEXT})

    def read(file: Path, name: str, work: Path) -> list[Chunk]:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is no text.") from error
        return [own.model_copy(update={"id": name, "source": name, "text": text})]

    return Corpus([own], folder / "documents", read)


@contextmanager
def service(
    folder: Path,
    gguf: Path,
    threads: int,
    parallel: int,
    name: str,
    body_seconds: float,
    corpus: Corpus | None,
) -> Iterator[tuple[int, str, Gateway, io.StringIO]]:
    """(port, key, gateway, log) of a service that answers."""
    config = ServeConfig(
        port=0,
        parallel=parallel,
        context_tokens=512,
        deadline_seconds=DEADLINE_SECONDS,
        body_seconds=body_seconds,
        answer_tokens=16,
    )
    keys, log = KeyFile(folder / "keys.json"), io.StringIO()
    key = keys.add("all", SCOPES, KeyLimits())
    gateway = Gateway(
        name=name,
        config=config,
        engine=LocalEngine(gguf, EngineSizes(threads, parallel, config.context_tokens)),
        folder=folder,
        keys=keys,
        ask=lambda passage, question: f"{passage}\n\n{question}",
        feedback=FeedbackStore(folder / "feedback.sqlite"),
        corpus=corpus,
        log=Log(log),
    )
    server, started = Server(gateway), threading.Event()
    with listen(config) as listening:
        port = listening.getsockname()[1]

        def run() -> None:
            asyncio.run(server.run_at(listening, lambda address: started.set()))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert started.wait(START_SECONDS)
            yield port, key, gateway, log
        finally:
            gateway.draining = server.should_exit = True
            thread.join()
