"""llama.cpp in a process of its own: one job from standard input, one answer to standard output.

In: a JSON object with `job` and its arguments. Out: a JSON object, or files that it names.
Jobs of the engine that Potstill generates and chats with (xllamacpp): `tokenize`, `render`,
`answer`. Jobs of llama.cpp's raw interface (cyllama): `score`, `quantize`.
A process runs one job, so two builds of llama.cpp never meet in one address space, and a crash
in native code is only an exit code. Started by `native.py`; knows nothing of Potstill's files.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

# The server is on this machine: no proxy of the environment may come between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
REQUEST_SECONDS = 3600


def main() -> int:
    """Run the job. Exit code 0: the answer is on standard output; 1: a reason is on stderr."""
    # llama.cpp may print; the answer gets the real standard output for itself.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job: dict[str, Any] = json.load(sys.stdin)
    function: Callable[..., dict[str, Any]] = JOBS[job.pop("job")]
    try:
        result = function(**job)
    except Exception as error:
        sys.stderr.write(f"\nREASON {type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    json.dump(result, answer)
    answer.flush()
    # Native threads may still run; leaving without teardown is safe once the answer is out.
    os._exit(0)


def tokenize(gguf: str, texts: list[str], add_special: bool, threads: int) -> dict[str, Any]:
    """Token ids of each text, special tokens in it parsed as such."""
    server = _serve(gguf, threads, context=512)
    ids = []
    for text in texts:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        ids.append([int(one) for one in _post(server, "/tokenize", body)["tokens"]])
    return {"ids": ids}


def render(gguf: str, conversations: list[list[dict[str, str]]], threads: int) -> dict[str, Any]:
    """Each conversation as the model's chat template renders it; None where it refuses."""
    server = _serve(gguf, threads, context=512)
    prompts: list[str | None] = []
    for messages in conversations:
        try:
            prompts.append(_post(server, "/apply-template", {"messages": messages})["prompt"])
        except urllib.error.HTTPError:
            prompts.append(None)
    return {"prompts": prompts}


def answer(
    gguf: str,
    conversations: list[list[dict[str, str]]],
    max_tokens: int,
    context: int,
    threads: int,
) -> dict[str, Any]:
    """Greedy answers as a user gets them, one at a time, with their times.

    Each answer: text, prompt_ids (of the rendered prompt), ids, finish ("stop" | "length"),
    first_token_s (until the first token is there), decode_s (for the other tokens).
    """
    server = _serve(gguf, threads, context=context)
    answers = []
    for messages in conversations:
        prompt = _post(server, "/apply-template", {"messages": messages})["prompt"]
        tokenized = {"content": prompt, "add_special": True, "parse_special": True}
        prompt_ids = _post(server, "/tokenize", tokenized)["tokens"]
        body = {
            "prompt": prompt_ids,
            "n_predict": max_tokens,
            "temperature": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
        }
        reply = _post(server, "/completion", body)
        timings = reply["timings"]
        answers.append(
            {
                "text": reply["content"],
                "prompt_ids": [int(one) for one in prompt_ids],
                "ids": [int(one) for one in reply["tokens"]],
                "finish": "stop" if reply["stop_type"] in ("eos", "word") else "length",
                "first_token_s": timings["prompt_ms"] / 1000,
                "decode_s": timings["predicted_ms"] / 1000,
            }
        )
    return {"answers": answers, "peak_memory_bytes": _peak_memory()}


def _serve(gguf: str, threads: int, context: int) -> str:
    """Start the engine's own server on a free local port; returns its address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = False
    params.n_gpu_layers = 0
    params.verbosity = 0
    global _SERVER  # kept alive as long as the process
    _SERVER = xllamacpp.Server(params)
    return str(_SERVER.listening_address)


_SERVER: Any = None


def _post(server: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with _OPENER.open(request, timeout=REQUEST_SECONDS) as reply:
        return json.load(reply)


def score(
    gguf: str, rows: list[list[int]], starts: list[int], out: str, context: int, threads: int
) -> dict[str, Any]:
    """Logits that llama.cpp gives under teacher forcing, over the whole vocabulary.

    rows: token ids. starts: for each row the position of its first scored token (>= 1).
    `out` is a float32 .npy of shape (sum of len(row) - start, vocabulary): for each token from
    `start` on the logits of the position before it, row after row.
    """
    import numpy as np

    native, model = _raw_model(gguf)
    params = native.LlamaContextParams()
    params.n_ctx = params.n_batch = context
    params.n_threads = params.n_threads_batch = threads
    running = native.LlamaContext(model, params, verbose=False)
    count = sum(len(row) - start for row, start in zip(rows, starts, strict=True))
    logits = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float32, shape=(count, model.n_vocab)
    )
    batch = native.LlamaBatch(n_tokens=context, embd=0, n_seq_max=1)
    filled, began = 0, time.monotonic()
    for row, start in zip(rows, starts, strict=True):
        running.kv_cache_clear()
        batch.clear()
        for position, token in enumerate(row[:-1]):
            batch.add(token, position, [0], position >= start - 1)
        if running.decode(batch) not in (0, None):
            raise RuntimeError(f"llama_decode failed on a row of {len(row)} tokens")
        for position in range(start - 1, len(row) - 1):
            logits[filled] = running.get_logits_ith(position)
            filled += 1
    logits.flush()
    return {"positions": filled, "vocabulary": model.n_vocab, "seconds": time.monotonic() - began}


def quantize(source: str, out: str, ftype: int, threads: int) -> dict[str, Any]:
    """llama.cpp's own llama_model_quantize; `ftype` is a llama_ftype number."""
    import cyllama.llama.llama_cpp as native

    native.disable_logging()
    native.llama_backend_init()
    params = native.LlamaModelQuantizeParams()
    params.ftype = ftype
    params.nthread = threads
    native.model_quantize(source, out, params)
    return {"bytes": os.path.getsize(out)}  # noqa: PTH202


def _raw_model(gguf: str) -> tuple[Any, Any]:
    import cyllama.llama.llama_cpp as native

    class Model(native.LlamaModel):  # type: ignore[misc]
        """cyllama 0.2.18's get_logits_ith asks its model for n_vocab, which it does not have."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    native.disable_logging()
    native.llama_backend_init()
    params = native.LlamaModelParams()
    params.n_gpu_layers = 0
    return native, Model(gguf, params)


def _peak_memory() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "tokenize": tokenize,
    "render": render,
    "answer": answer,
    "score": score,
    "quantize": quantize,
}

if __name__ == "__main__":
    sys.exit(main())
