"""The engine of a student that marks answers: an exported ONNX file in ONNX Runtime.

In: questions and passages. Out: the best answer, with its probability and its place. It runs in a
process of its own (`span_worker.py`), as llama.cpp does: a crash in native code costs the questions
under way, and it is started again. Knows nothing of clients, keys and documents.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.extras import check_installed
from potstill.errors import ModelError
from potstill.serve.engine import START_SECONDS, ChildEngine, Tell
from potstill.serve.problems import ApiError, invalid, unavailable
from potstill.serve.upstream import LOST

PATH = "/v1/qa"
LONGEST_LINE = 16 * 2**20


@dataclass(frozen=True)
class Marked:
    """An answer as the engine marked it. passage: the number of the one that it stands in; None:
    none of them answers, and `answer` is empty. start, end: its characters in that passage.
    no_answer: how probable it is that none answers. tokens: that were read."""

    passage: int | None
    answer: str
    score: float
    start: int
    end: int
    no_answer: float
    tokens: int


NOTHING = Marked(None, "", 1.0, 0, 0, 1.0, 0)
"""Where there is nothing to read."""


def event_of(marked: Marked) -> dict[str, Any]:
    """What was marked, as an event."""
    return {
        "choices": [{"index": 0, "text": marked.answer, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": marked.tokens, "total_tokens": marked.tokens},
        "marked": marked,
    }


class SpanEngine(ChildEngine):
    """A model that marks answers, over one ONNX file.

    folder: of the model's tokenizer and configuration. threads: of the processor; so many
    questions, at most `parallel`, are read at once, each by an equal share of them. tell: hears of
    crashes.
    """

    local = False
    context_tokens: int | None = None
    """A passage of any length is read, in windows."""
    command = (sys.executable, "-m", "potstill.serve.span_worker")

    def __init__(
        self,
        folder: Path,
        file: Path,
        threads: int,
        parallel: int,
        tell: Tell = lambda *_, **__: None,
    ) -> None:
        """Errors: MissingExtraError."""
        for module, extra in (("onnxruntime", "onnx"), ("transformers", "train")):
            check_installed(module, "Serving a student that marks answers", extra)
        super().__init__(max(1, threads // min(threads, parallel)), tell)
        self.folder, self.file = folder, file
        self.at_once = min(threads, parallel)
        self.model = file.stem
        self._ready = False
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._reading: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the process runs and is warm."""
        return self._ready

    @property
    def upstream(self) -> SpanEngine:
        """It is asked directly."""
        return self

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One event: the answer to body's question, with all that was marked beside it.

        Errors: ApiError; 400 for any path but PATH, because this student writes nothing.
        """
        if path != PATH:
            raise invalid(
                "This student marks answers in passages and writes none: ask it at POST /v1/qa.",
                "model",
                "wrong_task",
            )
        marked = await self.mark(body["question"], body["passages"], body["threshold"])
        yield event_of(marked)

    async def mark(self, question: str, passages: list[str], threshold: float | None) -> Marked:
        """The best answer of all passages. threshold: how many nats likelier than the best span no
        answer must be; None: the student's own. To cancel it frees the engine.

        Errors: ApiError 400 for an empty question or passage, 503 if the engine is not there.
        """
        process = self._process
        if not self._ready or process is None or process.stdin is None:
            raise unavailable("The engine is starting.", "engine_starting")
        number = next(self._numbers)
        told = self._asked[number] = asyncio.get_running_loop().create_future()
        job = {"id": number, "question": question, "passages": passages, "threshold": threshold}
        try:
            process.stdin.write((json.dumps(job) + "\n").encode())
            await process.stdin.drain()
            said = await told
        except OSError as error:
            raise unavailable(LOST) from error
        except asyncio.CancelledError:
            with suppress(OSError):
                process.stdin.write((json.dumps({"cancel": number}) + "\n").encode())
            raise
        finally:
            del self._asked[number]
        if refused := said.get("refused"):
            raise invalid(str(refused))
        if failed := said.get("failed"):
            raise unavailable(f"The engine failed: {failed}.")
        said.pop("id")
        return Marked(**said)

    async def _open(self) -> None:
        job = {
            "folder": str(self.folder),
            "file": str(self.file),
            "threads": self._threads,
            "at_once": self.at_once,
        }
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._spawn(job, LONGEST_LINE)
        except BaseException as error:
            await self._close()
            if isinstance(error, TimeoutError):
                raise self._no_engine(f"no answer within {START_SECONDS:g} s") from error
            raise
        assert self._process is not None
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout))
        self._ready = True

    async def _read(self, answers: asyncio.StreamReader) -> None:
        try:
            while line := await answers.readline():
                said = json.loads(line)
                told = self._asked.get(said["id"])
                if told is not None and not told.done():
                    told.set_result(said)
        finally:  # the process is gone, or this engine is being closed
            self._ready = False
            for told in self._asked.values():
                if not told.done():
                    told.set_exception(unavailable(LOST))

    def _no_engine(self, reason: str) -> ModelError:
        return ModelError(
            f"ONNX Runtime cannot serve {self.file}: {reason.rstrip('.')}.",
            "Export it again, or choose another exported file with --file.",
        )

    async def _close(self) -> None:
        self._ready = False
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await reading
        await super()._close()
