"""The processes that read files, and the watch over them.

In: tasks. Out: for each its folder of records, or `UnusableError`: also for a file that takes too
long (timed_out), too much memory (out_of_memory), or its process down with it (crashed). The
process is then replaced, and the other files go on. Knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Protocol

from potstill.core.machine import resident_bytes
from potstill.errors import PotstillError, error_from
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.one import OnSign, Task

LOOK_SECONDS = 0.1
Outcome = Path | UnusableError


class Desk(Protocol):
    """Whoever reads files for the stage."""

    def start(self, task: Task) -> None:
        """Put a file on the pile; it is read when a process is free."""

    def wait(self, task: Task, on_sign: OnSign) -> Path:
        """The folder of a started file's records. Errors: UnusableError, PotstillError."""


class Desks:
    """`processes` workers. Used as a context manager; ends them all.

    `tokenizer`: a tokenizer.json. `threads`: for all of them together.
    """

    command: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "potstill.ingest.worker")

    def __init__(
        self, config: IngestConfig, work: Path, tokenizer: Path, processes: int, threads: int
    ) -> None:
        self.config = config
        self.job = {
            "config": config.model_dump(mode="json"),
            "work": str(work),
            "tokenizer": str(tokenizer),
            "threads": max(1, threads // processes),
        }
        self.most = processes
        self._pile: deque[Task] = deque()
        self._done: dict[Task, Outcome] = {}
        self._heard: SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._signs: dict[Task, tuple[int, int, str]] = {}

    def __enter__(self) -> Desks:
        return self

    def __exit__(self, *problem: object) -> None:
        for worker in self._workers:
            worker.end()

    def start(self, task: Task) -> None:
        """Put a file on the pile."""
        self._pile.append(task)
        self._give()

    def wait(self, task: Task, on_sign: OnSign) -> Path:
        """The folder of a file's records. Errors: UnusableError, PotstillError."""
        while task not in self._done:
            self._hear()
            self._watch()
            if sign := self._signs.pop(task, None):
                on_sign(*sign)
        outcome = self._done.pop(task)
        if isinstance(outcome, UnusableError):
            raise outcome
        return outcome

    def _give(self) -> None:
        """Each free worker gets a task; a new worker begins where there are too few."""
        while self._pile:
            free = next((one for one in self._workers if one.task is None), None)
            if free is None:
                if len(self._workers) >= self.most:
                    return
                free = _Worker(self.command, self.job, self._heard)
                self._workers.append(free)
            free.take(self._pile.popleft())

    def _hear(self) -> None:
        """One message, or none within a moment."""
        try:
            worker, said = self._heard.get(timeout=LOOK_SECONDS)
        except Empty:
            return
        if said is None:
            self._gone(worker)
            return
        worker.last_sign = time.monotonic()
        if "fatal" in said:
            raise error_from(said["fatal"])
        if "ready" in said:
            worker.ready = True
            worker.began = worker.last_sign  # what it took to start is no file's fault
        elif worker.task is None or worker.verdict is not None:
            return  # it had been given up already
        elif "unit" in said:
            if said["unit"]:
                self._signs[worker.task] = (said["done"], said["of"], said["unit"])
        else:
            outcome: Outcome
            if "part" in said:
                outcome = Path(said["part"])
            else:
                outcome = UnusableError(said["reason"], said["detail"])
            self._done[worker.task] = outcome
            worker.task = None
            self._give()

    def _gone(self, worker: _Worker) -> None:
        """A worker has ended: its file is to blame, if it had one."""
        code = worker.process.wait()
        worker.end()
        if worker in self._workers:
            self._workers.remove(worker)
        if not worker.ready and worker.verdict is None:
            raise PotstillError(
                f"A process that reads files ended before it began (exit code {code}).",
                "The stage's log in the run's folder logs/ says why.",
            )
        if worker.task is not None:
            self._done[worker.task] = worker.verdict or _post_mortem(code)
        self._give()

    def _watch(self) -> None:
        """End workers whose file takes too long or too much."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.task is None or worker.verdict is not None:
                continue
            if verdict := self._verdict(worker, now):
                worker.verdict = verdict
                worker.process.kill()

    def _verdict(self, worker: _Worker, now: float) -> UnusableError | None:
        config = self.config
        if now - worker.began > config.file_seconds:
            return UnusableError(
                "timed_out",
                f"reading it took more than {config.file_seconds:g} s (ingest.file_seconds)",
            )
        if now - worker.last_sign > config.page_seconds:
            return UnusableError(
                "timed_out",
                f"nothing got done for {config.page_seconds:g} s (ingest.page_seconds)",
            )
        if resident_bytes(worker.process.pid) > config.file_memory_bytes:
            return UnusableError(
                "out_of_memory",
                f"reading it took more than {config.file_memory_bytes / 1e9:g} GB "
                "(ingest.file_memory_bytes)",
            )
        return None


def _post_mortem(code: int) -> UnusableError:
    """What to say of a file whose process ended by itself."""
    if code == -getattr(signal, "SIGKILL", 9):
        return UnusableError(
            "out_of_memory", "the system ended the process that read it, mostly for want of memory"
        )
    name = f"exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
    return UnusableError("crashed", f"the process that read it crashed ({name})")


class _Worker:
    """One process, and the thread that listens to it."""

    def __init__(
        self,
        command: tuple[str, ...],
        job: dict[str, Any],
        heard: SimpleQueue[tuple[_Worker, dict[str, Any] | None]],
    ) -> None:
        threads = str(job["threads"])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
        )
        self.task: Task | None = None
        self.verdict: UnusableError | None = None
        self.ready = False
        self.began = self.last_sign = time.monotonic()
        self._heard = heard
        threading.Thread(target=self._listen, daemon=True).start()
        self._tell(job)

    def take(self, task: Task) -> None:
        """Give it a file."""
        self.task = task
        self.began = self.last_sign = time.monotonic()
        self._tell({"name": task.name, "path": str(task.path), "identity": task.identity})

    def _tell(self, words: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and will be heard of
            self.process.stdin.write((json.dumps(words) + "\n").encode())
            self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with contextlib.suppress(ValueError):  # a line that a crash broke off
                    self._heard.put((self, json.loads(line)))
        self._heard.put((self, None))

    def end(self) -> None:
        """End the process, whatever it is doing; its unfinished file is read anew next time."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
