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
import statistics
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.core.machine import own_peak_bytes

# The server is on this machine: no proxy of the environment may come between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
REQUEST_SECONDS = 3600
# llama.cpp may print: the answer gets the real standard output for itself, from the start.
_ANSWER = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def main() -> int:
    """Run the job. Exit code 0: the answer is on standard output; 1: a reason is on stderr."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    function: Callable[..., dict[str, Any]] = JOBS[job.pop("job")]
    try:
        result = function(**job)
    except Exception as error:
        sys.stderr.write(f"\nREASON {type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    _say(result)
    # Native threads may still run; leaving without teardown is safe once the answer is out.
    os._exit(0)


def _say(value: dict[str, Any]) -> None:
    _ANSWER.write(json.dumps(value) + "\n")
    _ANSWER.flush()


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
    end: int | None,
    timed_tokens: int,
    timed_rounds: int,
    context: int,
    threads: int,
) -> dict[str, Any]:
    """Greedy answers as a user gets them, whether the end token ends them, and how fast they come.

    Each answer: text, prompt_ids, finish ("stop" | "length"). `stops`: generation ended at once
    when the token `end` was made certain. Timings are of the prompt of median length:
    first_token_s (the prompt until its first token) and tokens_per_second (after it), each the
    median of the rounds; no round re-uses what an earlier one computed.
    """
    server = _serve(gguf, threads, context)
    answers = []
    for messages in conversations:
        prompt = _post(server, "/apply-template", {"messages": messages})["prompt"]
        tokenized = {"content": prompt, "add_special": True, "parse_special": True}
        ids = _post(server, "/tokenize", tokenized)["tokens"]
        reply = _complete(server, ids, max_tokens, cache_prompt=True)
        finish = "stop" if reply["stop_type"] == "eos" else "length"
        answers.append({"text": reply["content"], "prompt_ids": ids, "finish": finish})
        _say({"done": len(answers)})
    prompts = sorted((one["prompt_ids"] for one in answers), key=len)
    middle = prompts[len(prompts) // 2]
    forced = _complete(server, middle, 4, logit_bias=[[end, 1000.0]]) if end is not None else {}
    firsts, rates = [], []
    for _ in range(timed_rounds):
        reply = _complete(server, middle, timed_tokens, cache_prompt=False, ignore_eos=True)
        firsts.append(reply["timings"]["prompt_ms"] / 1000)
        rates.append((reply["timings"]["predicted_n"] - 1) / reply["timings"]["predicted_ms"] * 1e3)
    return {
        "answers": answers,
        "stops": forced.get("stop_type") == "eos",
        "first_token_s": statistics.median(firsts),
        "tokens_per_second": statistics.median(rates),
        "peak_memory_bytes": own_peak_bytes(),
    }


def _complete(server: str, ids: list[int], tokens: int, **settings: Any) -> Any:
    body = {"prompt": ids, "n_predict": tokens, "temperature": 0.0, **settings}
    return _post(server, "/completion", body)


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


def score(gguf: str, out: str, context: int, threads: int) -> dict[str, Any]:
    """Logits under teacher forcing over the whole vocabulary, row after row as they are asked for.

    Each further line of standard input is `{"ids": [...], "start": ..., "keep": ...}`; an empty
    line ends it. For each, `out` becomes a float32 .npy [len(ids) - start, vocabulary]: for each
    token from `start` on the logits of the position before it. The first `keep` tokens, fewer
    than `start`, are those of the line before and are not read again.
    """
    import numpy as np

    native, model = _raw_model(gguf)
    params = native.LlamaContextParams()
    params.n_ctx = params.n_batch = context
    params.n_threads = params.n_threads_batch = threads
    running = native.LlamaContext(model, params, verbose=False)
    batch = native.LlamaBatch(n_tokens=context, embd=0, n_seq_max=1)
    _say({"vocabulary": model.n_vocab})
    for line in sys.stdin:
        if not line.strip():
            break
        row = json.loads(line)
        ids, start, keep = row["ids"], row["start"], row["keep"]
        if not (keep and running.memory_seq_rm(0, keep, -1)):
            keep = 0  # the first row, or an architecture whose state cannot be cut
            running.kv_cache_clear()
        batch.clear()
        for position in range(keep, len(ids) - 1):
            batch.add(ids[position], position, [0], position >= start - 1)
        if running.decode(batch) not in (0, None):
            raise RuntimeError(f"llama_decode failed on a row of {len(ids)} tokens")
        logits = np.empty((len(ids) - start, model.n_vocab), dtype=np.float32)
        for place in range(len(logits)):
            logits[place] = running.get_logits_ith(start - 1 - keep + place)
        np.save(out, logits)
        _say({"positions": len(logits)})
    return {}


def quantize(source: str, out: str, ftype: int, threads: int) -> dict[str, Any]:
    """llama.cpp's own llama_model_quantize; `ftype` is a llama_ftype number."""
    import cyllama.llama.llama_cpp as native

    native.disable_logging()
    native.llama_backend_init()
    params = native.LlamaModelQuantizeParams()
    params.ftype = ftype
    params.nthread = threads
    native.model_quantize(source, out, params)
    return {"bytes": Path(out).stat().st_size}


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


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "tokenize": tokenize,
    "render": render,
    "answer": answer,
    "score": score,
    "quantize": quantize,
}

if __name__ == "__main__":
    sys.exit(main())
