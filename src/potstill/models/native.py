"""Ask llama.cpp something in a process of its own: token ids, prompts, answers, logits, quantising.

In: a GGUF file and what to do with it. Out: plain values and dataclasses; logits as a .npy file.
The process is `native_worker.py`. Knows nothing of transformers or torch, and imports neither.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.errors import ModelError

JOB_SECONDS = 6 * 3600
# llama.h, enum llama_ftype: the number of each quantisation by the name people use.
FTYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q8_0": 7,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "bf16": 32,
}


@dataclass(frozen=True)
class Answer:
    """A greedy answer of llama.cpp to one conversation."""

    text: str
    prompt_ids: list[int]
    ids: list[int]
    finish: str
    """"stop": the model ended its turn; "length": it was cut off."""
    first_token_s: float
    decode_s: float
    """Seconds for the tokens after the first."""


def tokenize(
    gguf: Path, texts: Sequence[str], *, add_special: bool, threads: int = 1
) -> list[list[int]]:
    """Token ids of each text; special tokens written in a text count as such."""
    _need("xllamacpp")
    job = {"texts": list(texts), "add_special": add_special, "threads": threads}
    ids: list[list[int]] = _run("tokenize", gguf, job)["ids"]
    return ids


def render(
    gguf: Path, conversations: Sequence[Sequence[dict[str, str]]], *, threads: int = 1
) -> list[str | None]:
    """Each conversation as the GGUF's chat template renders it, with the generation prompt."""
    _need("xllamacpp")
    job = {"conversations": [list(one) for one in conversations], "threads": threads}
    prompts: list[str | None] = _run("render", gguf, job)["prompts"]
    return prompts


def answer(
    gguf: Path,
    conversations: Sequence[Sequence[dict[str, str]]],
    *,
    max_tokens: int,
    context: int,
    threads: int,
) -> tuple[list[Answer], int]:
    """Greedy answers one at a time, and the process's peak memory in bytes."""
    _need("xllamacpp")
    job = {
        "conversations": [list(one) for one in conversations],
        "max_tokens": max_tokens,
        "context": context,
        "threads": threads,
    }
    result = _run("answer", gguf, job)
    return [Answer(**one) for one in result["answers"]], int(result["peak_memory_bytes"])


def score(
    gguf: Path,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    out: Path,
    *,
    threads: int,
) -> None:
    """Write llama.cpp's full-vocabulary logits under teacher forcing to `out`, a float32 .npy.

    rows: token ids; starts: the first scored token of each, at least 1. The array's shape is
    (sum of len(row) - start, vocabulary), row after row.
    """
    _need("cyllama")
    job = {
        "rows": [list(row) for row in rows],
        "starts": list(starts),
        "out": str(out),
        "context": max(len(row) for row in rows) + 8,
        "threads": threads,
    }
    _run("score", gguf, job)


def quantize(source: Path, out: Path, kind: str, *, threads: int) -> None:
    """Quantise a GGUF with llama.cpp's own quantiser; `kind` is a key of `FTYPES`."""
    _need("cyllama")
    job = {"source": str(source), "out": str(out), "ftype": FTYPES[kind], "threads": threads}
    _run("quantize", None, job)


def _need(module: str) -> None:
    # find_spec, not an import: the builds of llama.cpp must not be loaded into this process.
    import importlib.util

    if importlib.util.find_spec(module) is None:
        require(module, "llamacpp", "Working with GGUF files")


def _run(name: str, gguf: Path | None, job: dict[str, Any]) -> dict[str, Any]:
    if gguf is not None:
        job["gguf"] = str(gguf)
    file = gguf or Path(job["source"])
    done = subprocess.run(
        [sys.executable, "-m", "potstill.models.native_worker"],
        input=json.dumps({"job": name, **job}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=JOB_SECONDS,
        check=False,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout)
        return result
    raise ModelError(
        f"llama.cpp cannot {name} with {file}: {_reason(done.returncode, done.stderr)}.",
        "The file may be truncated, or its architecture unknown to this llama.cpp.",
    )


def _reason(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("REASON "):
            return line.removeprefix("REASON ")[:300].rstrip(".")
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return (lines[-1][:300] if lines else f"exit code {code}").rstrip(".")
