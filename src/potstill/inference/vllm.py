"""vLLM in a process of its own: many requests at once on a GPU, without an address of its own.

In: a model reference and requests. Out: replies. Starts the command `vllm serve` on a Unix socket
in a folder that nobody else can enter, and asks it as any endpoint is asked (`openai.py`). The
command may be of another environment, as vLLM pins its own torch: POTSTILL_VLLM names it.

What vLLM would decide by itself is decided here: it draws as the request says, and not as the
model's generation_config.json; reads safetensors only, and runs no code of the model's; reports
nothing to anybody. Its replies may depend on what else is in the batch, as an endpoint's do.
Knows nothing of documents.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from potstill.core import tether
from potstill.core.extras import require
from potstill.errors import MissingExtraError, ModelError, TeacherError
from potstill.inference.base import Reply, Request
from potstill.inference.endpoint import EndpointConfig

COMMAND = "POTSTILL_VLLM"
NAME = "teacher"  # what the model is called on its socket
START_SECONDS = 3600.0  # of a large model from a slow disk
FORM_BY = "guidance"  # its first choice, xgrammar 0.2.8, cannot compile some of our schemas
HEALTH = "http://localhost/health"  # the host is the socket's
ANSWER_SECONDS = 7200.0
CPU_CACHE_GIB = "2"
SHARE_FOR_WEIGHTS = 0.7  # of a GPU's memory; the rest is for what is read and written
DEATH_SECONDS = 10.0  # from a request that fails to the end of the process, if that is why
ERROR = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception|Exit)): (.+)")


class VllmModel:
    """A model in vLLM's server, which lives as long as this.

    threads: of a vLLM for CPUs. parallel: requests that run at once. context_tokens: longest prompt
    and reply together. Errors: MissingExtraError without the command; ModelError if it cannot serve
    the model, or ends while it is asked.
    """

    def __init__(
        self,
        reference: str,
        *,
        threads: int,
        parallel: int,
        context_tokens: int,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        from potstill.inference.openai import EndpointModel
        from potstill.models.load import model_folder

        self._http: Any = require("httpx2", "endpoint", "vLLM")
        program = command()
        self.model = model_folder(reference)
        self._tokenizer: Any = None
        # A Unix socket's path is short: a folder of the user's own may be too deep.
        self._folder = Path(tempfile.mkdtemp(prefix="potstill-vllm-", dir="/tmp"))
        self._socket = self._folder / "socket"
        with (self._folder / "log").open("wb") as log:
            self._process = tether.begin(
                [str(program), *serving(self.model, self._socket, parallel, context_tokens)],
                stdout=log,
                stderr=log,
                env=environment(threads),
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        endpoint = EndpointConfig(
            base_url="http://localhost/v1",
            concurrency=parallel,
            first_byte_seconds=ANSWER_SECONDS,
            timeout_seconds=ANSWER_SECONDS,
            max_retries=1,
        )
        self._client = EndpointModel(endpoint, NAME, warn, socket=self._socket)

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come."""
        try:
            for position, reply in self._client.complete(requests):
                if reply.finish_reason == "error" and not reply.text.startswith("HTTP 4"):
                    self._check_runs(DEATH_SECONDS)
                yield position, reply
        except TeacherError as error:
            raise self._with_reason(error) from error

    def stream(self, request: Request) -> Iterator[str]:
        """Pieces of one reply."""
        try:
            yield from self._client.stream(request)
        except TeacherError as error:
            raise self._with_reason(error) from error

    def count_tokens(self, text: str) -> int:
        """Length in tokens, without special tokens."""
        return len(self.token_ids(text))

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """The tokenizer's ids."""
        from potstill.models.load import tokenizer_in

        self._tokenizer = self._tokenizer or tokenizer_in(self.model)
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def close(self) -> None:
        """End the server."""
        if hasattr(self, "_client"):
            self._client.close()
        tether.end(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        """Until it answers. Errors: ModelError with its own reason if it ends or never does."""
        began = time.monotonic()
        transport = self._http.HTTPTransport(uds=str(self._socket))
        with self._http.Client(transport=transport, timeout=5.0) as client:
            while time.monotonic() - began < START_SECONDS:
                self._check_runs()
                with suppress(self._http.HTTPError, OSError):
                    if self._listens() and client.get(HEALTH).status_code == 200:
                        return
                time.sleep(0.2)
        raise self._failed(f"did not answer within {START_SECONDS:g} seconds")

    def _listens(self) -> bool:
        """Whether a connection is taken; the client leaves one that is refused unclosed."""
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self._socket)) == 0

    def _check_runs(self, patience: float = 0.0) -> None:
        """Errors: ModelError if it has ended, or does within so many seconds."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return
        raise self._failed(f"ended with exit code {code}")

    def _with_reason(self, error: TeacherError) -> TeacherError:
        """What the client saw, and what the log says of it. Errors: ModelError if it has ended."""
        self._check_runs(DEATH_SECONDS)
        return TeacherError(
            f"vLLM fails with the model {self.model}: {reason_in(self._log)} ({error.message})",
            "What it has answered is kept; run again and it goes on from there.",
        )

    @property
    def _log(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")

    def _failed(self, what: str) -> ModelError:
        return ModelError(
            f"vLLM {what}, for the model {self.model}: {reason_in(self._log)}",
            "It needs a GPU that holds the model, or a vLLM that is built for CPUs; backend: auto "
            "is for models that run without.",
        )


def command() -> Path:
    """Where the command is: what POTSTILL_VLLM names, else beside this Python, else on the path.

    Errors: MissingExtraError."""
    named = os.environ.get(COMMAND, "")
    places = [named] if named else [str(Path(sys.executable).with_name("vllm")), "vllm"]
    for place in places:
        if found := shutil.which(place):
            return Path(found)
    what = f"{COMMAND} names {named}, which is no command" if named else "it is not installed"
    raise MissingExtraError(
        f"The backend vllm needs the command vllm, and {what}.",
        "Install it with: pip install vllm; or, as it pins its own torch, into an environment of "
        f"its own, and name the command: export {COMMAND}=/opt/vllm/bin/vllm",
    )


def version() -> str:
    """The version of the command's vLLM. Errors: MissingExtraError; ModelError if it has none."""
    return _version(command())


@lru_cache
def _version(program: Path) -> str:
    # Its own --version imports all of it, for ten seconds; its Python knows at once.
    with program.open("rb") as script:
        first = script.readline(1000).decode("utf-8", "replace").strip()
    asked = [[str(program), "--version"]]
    if first.startswith("#!") and "python" in first:
        code = "from importlib.metadata import version; print(version('vllm'))"
        asked.insert(0, [*first[2:].split(), "-c", code])
    for line in asked:
        try:
            told = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        if words := told.stdout.split():
            return words[-1]
    raise ModelError(
        f"The command {program} does not say its version, as vLLM's does.",
        f"Try it: {program} --version",
    )


def serving(model: Path, place: Path, parallel: int, context_tokens: int) -> list[str]:
    """The command's arguments."""
    options = {
        "--uds": place,
        "--served-model-name": NAME,
        "--max-model-len": context_tokens,
        "--max-num-seqs": parallel,
        "--load-format": "safetensors",
        "--generation-config": "vllm",
        "--structured-outputs-config.backend": FORM_BY,
        "--tensor-parallel-size": devices_for(model),
    }
    told = [str(word) for pair in options.items() for word in pair]
    return ["serve", str(model), *told, "--disable-uvicorn-access-log"]


def environment(threads: int) -> dict[str, str]:
    """What it is started with: no reports, no hub; keys and this Python's paths stay here."""
    own = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|^PYTHON(?:PATH|HOME)$", re.IGNORECASE)
    # On a GPU vLLM takes what is free; on processors it would ask for nearly all of the memory.
    room = os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
    kept = {name: value for name, value in os.environ.items() if not own.search(name)}
    return kept | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": room,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def devices_for(model: Path) -> int:
    """GPUs that one copy is divided among: the least power of two whose memory holds it, of those
    that this process may use; 1 without any."""
    import torch

    seen = torch.cuda.device_count()
    if seen < 2:
        return 1
    memory = min(torch.cuda.get_device_properties(n).total_memory for n in range(seen))
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return least_devices(weights, memory, seen)


def least_devices(weights: float, memory: float, seen: int) -> int:
    """The least power of two of devices whose memory holds the weights, all in bytes; the most that
    there is if none does."""
    devices = 1
    while weights > devices * memory * SHARE_FOR_WEIGHTS and 2 * devices <= seen:
        devices *= 2
    return devices


def reason_in(log: str) -> str:
    """Why a start failed, of vLLM's log, in one line: the first error that is logged as one and not
    a report of another process' error; else the last that was raised; else what was said last."""
    said = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line for line in said if "initialization failed" not in line]
    logged = [line for line in own if " ERROR " in line]
    for lines in (logged, own[::-1], said[::-1]):
        for line in lines:
            if found := ERROR.search(line):
                return found.group(0)[:400]
    return said[-1][:400] if said else "it said nothing"
