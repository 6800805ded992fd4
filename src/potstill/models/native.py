"""Ask llama.cpp something in a process of its own: token ids, prompts, answers, logits, quantising.

In: a GGUF file and what to do with it. Out: plain values and dataclasses.
The process is `native_worker.py`. Knows nothing of transformers or torch, and imports neither.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.errors import ModelError
from potstill.models.prefixes import common_prefix

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
    finish: str
    """"stop": the model ended its turn; "length": it was cut off."""


@dataclass(frozen=True)
class Answers:
    """What one process answered, and how fast."""

    answers: list[Answer]
    stops: bool
    """Whether generation ended when the end token was made certain."""
    first_token_s: float
    tokens_per_second: float
    peak_memory_bytes: int


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
    end: int | None,
    timed_tokens: int,
    timed_rounds: int,
    context: int,
    threads: int,
    tell: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Greedy answers one at a time, in the engine that Potstill chats with; then timings.

    end: the token that must stop generation. `tell` hears how many answers are done.
    """
    _need("xllamacpp")
    job = {
        "conversations": [list(one) for one in conversations],
        "max_tokens": max_tokens,
        "end": end,
        "timed_tokens": timed_tokens,
        "timed_rounds": timed_rounds,
        "context": context,
        "threads": threads,
    }
    with _Worker("answer", gguf, job) as worker:
        result = worker.read()
        while "done" in result:
            tell(int(result["done"]))
            result = worker.read()
    answers = [Answer(**one) for one in result.pop("answers")]
    return Answers(answers=answers, **result)


@dataclass
class Scorer:
    """llama.cpp's own logits under teacher forcing, from a process that stays open.

    What a row shares with the beginning of the row before it is not read again.
    """

    vocabulary: int
    _worker: _Worker
    _out: Path
    _before: list[int] = field(default_factory=list)

    def logits(self, ids: Sequence[int], start: int) -> Any:
        """float32 array [len(ids) - start, vocabulary]: what predicts each token from `start` on.

        start: at least 1, because nothing predicts the first token.
        """
        import numpy as np

        keep = min(common_prefix(self._before, ids), start - 1)
        self._worker.write({"ids": list(ids), "start": start, "keep": keep})
        self._worker.read()
        self._before = list(ids[:-1])  # nothing is predicted from the last token
        return np.load(self._out, allow_pickle=False)


@contextmanager
def scorer(gguf: Path, *, context: int, threads: int) -> Iterator[Scorer]:
    """Open a `Scorer`; `context` is the longest row in tokens. Errors: ModelError."""
    _need("cyllama")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        job = {"out": str(out), "context": context + 8, "threads": threads}
        with _Worker("score", gguf, job) as worker:
            yield Scorer(int(worker.read()["vocabulary"]), worker, out)


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
    with _Worker(name, gguf, job) as worker:
        return worker.read()


class _Worker:
    """One `native_worker` process: lines of JSON in, lines of JSON out."""

    def __init__(self, name: str, gguf: Path | None, job: dict[str, Any]) -> None:
        self._name = name
        self._file = gguf or Path(job["source"])
        self._job = (
            {"job": name, **job} if gguf is None else {"job": name, "gguf": str(gguf), **job}
        )

    def __enter__(self) -> _Worker:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "potstill.models.native_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **_waiting(self._name)},
        )
        self.write(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def write(self, value: dict[str, Any]) -> None:
        """Send a line; a process that is gone is noticed by the next read."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """The next line. Errors: ModelError with llama.cpp's reason if there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            value: dict[str, Any] = json.loads(line)
            return value
        code = self._process.wait()
        self._errors.seek(0)
        raise ModelError(
            f"llama.cpp cannot {self._name} {self._file}: {_reason(code, self._errors.read())}.",
            "The file may be truncated, or its architecture unknown to this llama.cpp.",
        )


def _waiting(job: str) -> dict[str, str]:
    """How idle threads of the engine wait, in the environment's words.

    `score` goes on in turn with a PyTorch model, beside which they must not spin. The others work
    alone: threads that sleep between two products write 2.7 times fewer tokens a second.
    """
    return {"OMP_WAIT_POLICY": "passive"} if job == "score" else {}


def _reason(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("REASON "):
            return line.removeprefix("REASON ")[:300].rstrip(".")
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return (lines[-1][:300] if lines else f"exit code {code}").rstrip(".")
