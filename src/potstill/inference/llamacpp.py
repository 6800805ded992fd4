"""llama.cpp inside this process: parallel slots, shared prompt prefixes, schema-forced JSON.

In: a GGUF file and requests. Out: replies that depend on the request alone.

Reproducibility. A run that was killed and goes on must give the rows of an undisturbed one, so a
reply must not depend on which other requests were in the batch, nor on how much of the prompt was
still in the cache. In llama.cpp it does, in three places of the CPU code: flash attention has
other kernels for one query row than for many, F16 matrix products have another kernel for one
column than for several, and a unified cache mixes the rows of all slots. The settings below leave
one kernel each: flash attention over a BF16 cache (which only the row-by-row kernel can read) and
a cache of its own for each slot. Measured in docs/decisions/0002-reproducible-generation.md.

Knows nothing of model references; `open.py` finds the file.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.errors import ModelError
from potstill.inference.base import FinishReason, Reply, Request

# Draws are made among this many likeliest tokens: sorting the whole vocabulary for every token
# costs time and changes nothing at the temperatures that are used.
TOP_K = 128
LOOKAHEAD = 16  # requests a slot, from which a free one chooses what its cache knows best
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


class LlamaCppModel:
    """A GGUF model in llama.cpp's own server, in this process.

    threads: processor threads. parallel: requests that run at once. context_tokens: longest
    prompt and reply together, for each of them. Errors: ModelError if the file is no GGUF that
    this engine can load.
    """

    def __init__(self, gguf: Path, *, threads: int, parallel: int, context_tokens: int) -> None:
        engine = require("xllamacpp", "llamacpp", "Running a GGUF model")
        check_magic(gguf)
        self.parallel = parallel
        self._key = secrets.token_hex(16)
        params = engine.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = parallel
        params.n_ctx = context_tokens * parallel  # divided evenly among the slots
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.cache_type_k = engine.ggml_type.GGML_TYPE_BF16
        params.cache_type_v = engine.ggml_type.GGML_TYPE_BF16
        params.kv_unified = False
        params.cache_ram_mib = 0
        params.ctx_shift = False
        params.fit_params = False
        params.enable_reasoning = 0  # a schema is the reply's form; no thinking aloud before it
        params.api_keys = [self._key]
        params.endpoint_slots = False
        params.ui = False
        params.verbosity = -1
        try:
            self._server: Any = engine.Server(params)
        except Exception as error:
            raise ModelError(
                f"llama.cpp cannot load {gguf}.",
                "The file may be truncated or need a newer engine; fetch it again, "
                "or update xllamacpp.",
            ) from error

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """One thread a slot; each goes on with the waiting request nearest to its last one."""
        waiting = _Waiting(requests, self.parallel)
        done: queue.Queue[tuple[int, Reply] | BaseException | None] = queue.Queue()

        def work(slot: int) -> None:
            try:
                while (item := waiting.take(slot)) is not None:
                    position, request = item
                    done.put((position, self._answer(request, slot)))
            except BaseException as error:
                done.put(error)
            finally:
                done.put(None)

        threads = [
            threading.Thread(target=work, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(self.parallel)
        ]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                item = done.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            waiting.stop()
            for thread in threads:
                thread.join()

    def stream(self, request: Request) -> Iterator[str]:
        """Pieces of one reply as llama.cpp writes them. Errors: ModelError if it refuses."""
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        abandoned = threading.Event()

        def on_chunk(chunk: Any) -> bool:
            chunk = _as_object(chunk)
            if "error" in chunk or "choices" not in chunk:
                pieces.put(ModelError(f"The model refused: {_error_text(chunk)}."))
                return True
            for choice in chunk["choices"]:
                piece = choice.get("delta", {}).get("content")
                if piece:
                    pieces.put(piece)
            return abandoned.is_set()

        def work() -> None:
            try:
                self._server.handle_chat_completions(
                    {**self._body(request, slot=0), "stream": True}, on_chunk
                )
            except (RuntimeError, ValueError) as error:
                pieces.put(ModelError(f"The model refused: {error}."))
            except BaseException as error:
                pieces.put(error)
            finally:
                pieces.put(None)

        thread = threading.Thread(target=work, name="stream", daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            abandoned.set()
            thread.join()

    def count_tokens(self, text: str) -> int:
        """Length in tokens, without special tokens."""
        return len(self.token_ids(text))

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """llama.cpp's own token ids."""
        reply = self._post("/tokenize", {"content": text, "add_special": special})
        return [int(token) for token in reply["tokens"]]

    def close(self) -> None:
        """Stop the server and free the model."""
        self._server = None

    def _answer(self, request: Request, slot: int) -> Reply:
        began = time.monotonic()
        try:
            reply = _as_object(self._server.handle_chat_completions(self._body(request, slot)))
        except (RuntimeError, ValueError) as error:
            # llama.cpp raises where a reply is not what the schema promised, as with a pattern
            # that allows an unescaped quotation mark. The engine lives on.
            reply = {"message": str(error)}
        seconds = time.monotonic() - began
        if "choices" not in reply:
            return Reply(_error_text(reply), "error", 0, 0, seconds)
        choice, usage = reply["choices"][0], reply["usage"]
        finish: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
        text = choice["message"].get("content") or ""
        return Reply(text, finish, usage["prompt_tokens"], usage["completion_tokens"], seconds)

    def _body(self, request: Request, slot: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": TOP_K,
            "min_p": 0.0,
            "samplers": ["top_k", "top_p", "temperature"],
            "seed": request.seed,
            "stop": list(request.stop),
            "cache_prompt": True,
            "id_slot": slot,
        }
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"schema": request.schema},
            }
        return body

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        try:
            with _LOCAL.open(request, timeout=600) as reply:
                return json.load(reply)
        except urllib.error.URLError as error:
            raise ModelError(f"The engine inside this process does not answer: {error}.") from error


class _Waiting:
    """Requests that no slot has taken yet, read ahead from the caller's iterator."""

    def __init__(self, requests: Iterable[Request], slots: int) -> None:
        self._source = iter(enumerate(requests))
        self._ahead: list[tuple[int, Request]] = []
        self._last = [""] * slots
        self._lock = threading.Lock()
        self._stopped = False

    def take(self, slot: int) -> tuple[int, Request] | None:
        """The request whose beginning this slot has in its cache and no other has; else the
        oldest. So each passage is read by one slot, and not by all of them in turn."""
        with self._lock:
            while not self._stopped and len(self._ahead) < LOOKAHEAD * len(self._last):
                item = next(self._source, None)
                if item is None:
                    break
                self._ahead.append(item)
            if self._stopped or not self._ahead:
                return None
            gains = [self._gain(request.prompt_text, slot) for _, request in self._ahead]
            position, request = self._ahead.pop(gains.index(max(gains)))
            self._last[slot] = request.prompt_text
            return position, request

    def stop(self) -> None:
        with self._lock:
            self._stopped = True

    def _gain(self, text: str, slot: int) -> int:
        shared = [_shared(text, last) for last in self._last]
        own = shared.pop(slot)
        return own - max(shared, default=0)


def _shared(one: str, other: str) -> int:
    """Length of the common beginning of two texts, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def check_magic(gguf: Path) -> None:
    """Errors: ModelError if the file is not there, or is no GGUF."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"Cannot read the model {gguf}: {error.strerror}.") from error
    if magic != b"GGUF":
        raise ModelError(f"{gguf} is not a GGUF file.", "Check the path, or fetch the file again.")


def _as_object(value: Any) -> dict[str, Any]:
    loaded = json.loads(value) if isinstance(value, (str, bytes)) else value
    return loaded if isinstance(loaded, dict) else {"message": str(loaded)}


def _error_text(reply: dict[str, Any]) -> str:
    error = reply.get("error", reply)
    return str(error.get("message", error) if isinstance(error, dict) else error)
