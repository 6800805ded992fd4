"""Models that the chat page asks: each in a llama.cpp process of its own, started when it is asked.

In: GGUF files and messages. Out: pieces of answers as they are written, and how fast. At most two
models are held at once, so that a student and its teacher fit side by side. Knows no run.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.core.machine import usable_cores
from potstill.errors import ModelError

if TYPE_CHECKING:
    from potstill.serve.engine import LocalEngine

MOST_ENGINES = 2
CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Asked:
    """What is asked, and how the answer is drawn."""

    content: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @property
    def body(self) -> dict[str, Any]:
        """For the engine."""
        return {
            "messages": [{"role": "user", "content": self.content}],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class Player:
    """Asks models, one question at a time: they share the processor."""

    def __init__(self) -> None:
        self._engines: OrderedDict[Path, LocalEngine] = OrderedDict()
        self._turn: asyncio.Lock | None = None

    async def answer(self, gguf: Path, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """{"piece"} as it is written; at the end {"tokens", "wait", "rate", "looped", "cut"}.
        cut: it is as long as was allowed, and may not be whole.

        Errors: ModelError for a file that is gone or cannot be loaded, or an engine that fails.
        """
        from potstill.serve.loops import ends_in_loop
        from potstill.serve.problems import ApiError

        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            engine = await self._engine(gguf)
            text, tokens, first, looped, cut = "", 0, 0.0, False, False
            began = last = time.monotonic()
            try:
                async for event in engine.upstream.events("/v1/chat/completions", asked.body):
                    usage = event.get("usage") or {}
                    tokens = int(usage.get("completion_tokens", tokens))
                    choice = event["choices"][0] if event["choices"] else {}
                    cut = cut or choice.get("finish_reason") == "length"
                    piece = str((choice.get("delta") or {}).get("content") or "")
                    if not piece:
                        continue
                    last = time.monotonic()
                    first = first or last
                    tokens += not usage
                    text += piece
                    yield {"piece": piece}
                    if ends_in_loop(text):
                        looped = True
                        break
            except ApiError as error:
                raise ModelError(
                    error.message, "Ask once more, or start the studio again."
                ) from error
            # The first token waits for the prompt to be read, which is another kind of work.
            rate = (tokens - 1) / (last - first) if tokens > 1 and last > first else None
            wait = (first or last) - began
            yield {"tokens": tokens, "wait": wait, "rate": rate, "looped": looped, "cut": cut}

    async def _engine(self, gguf: Path) -> LocalEngine:
        from potstill.serve.engine import EngineSizes, LocalEngine

        if gguf in self._engines:
            self._engines.move_to_end(gguf)
            if self._engines[gguf].ready:
                return self._engines[gguf]
            await self._engines.pop(gguf).stop()
        if not gguf.is_file():
            raise ModelError(
                f"The model file {gguf} is gone.",
                "The run makes it again: go on with the run on its page.",
            )
        while len(self._engines) >= MOST_ENGINES:
            await self._engines.popitem(last=False)[1].stop()
        # One core is left to browser and studio: llama.cpp's threads wait for each other, and all
        # of them stand still while something else has the core of one.
        threads = max(1, usable_cores() - 1)
        engine = LocalEngine(gguf, EngineSizes(threads, 1, CONTEXT_TOKENS))
        await engine.start()
        self._engines[gguf] = engine
        return engine

    async def close(self) -> None:
        """End all engines."""
        while self._engines:
            await self._engines.popitem()[1].stop()
