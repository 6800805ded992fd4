"""Starts and stops runs, improvements and studies as processes of their own: the same commands that
one would type.

In: a run's folder with its recipe, or a command's words. Out: a process that outlives the page, the
browser and the studio; its output in a log (of a run: `run.log` of its folder). Stopping is what
Ctrl-C does. Knows no recipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from potstill.core.claims import holder
from potstill.core.files import disk_errors
from potstill.errors import StoreError

LOG = "run.log"
BEGIN = "== "
"""What a line of the log begins with that says when a process was started."""
TAIL = 64_000
PATIENCE = 10.0
"""Seconds after which a second wish to stop is no longer asked for, but carried out."""


class Launcher:
    """Starts runs, and knows the processes that it started until they end."""

    def __init__(self) -> None:
        self._begun: dict[Path, subprocess.Popen[bytes]] = {}
        self._asked: dict[Path, float] = {}
        self._lock = threading.Lock()

    def start(self, folder: Path, project: Path, *, anyway: bool = False, again: str = "") -> None:
        """Start or go on with the run of that folder; nothing if it runs already. again: the stage
        that is run once more, with all after it.

        Errors: StoreError if the log cannot be written.
        """
        words = ["run", str(folder / "recipe.yaml"), *(["--anyway"] if anyway else [])]
        words += ["--again", again] if again else []
        self.launch(folder, words, project, folder / LOG)

    def launch(self, place: Path, words: Sequence[str], project: Path, log: Path) -> None:
        """Start `potstill WORDS --project PROJECT`, which works on that place; nothing if something
        does already. Errors: StoreError if the log cannot be written."""
        command = [sys.executable, "-m", "potstill", *words, "--project", str(project)]
        with self._lock:
            if self.running(place):
                return
            self._asked.pop(place, None)
            with disk_errors(log, "write"):
                log.parent.mkdir(parents=True, exist_ok=True)
                written = log.open("ab")
            with disk_errors(log, "write"), written:
                written.write(f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
                written.flush()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=written,
                    cwd=project,
                    start_new_session=True,  # Ctrl-C in the studio's terminal is not for it
                    env={**os.environ, "COLUMNS": "110"},
                )
            self._begun[place] = process
        threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie behind

    def running(self, folder: Path) -> bool:
        """Whether a process works on that run, whoever started it."""
        begun = self._begun.get(folder)
        return (begun is not None and begun.poll() is None) or holder(folder) is not None

    def stop(self, folder: Path) -> None:
        """Ask the run to stop, as Ctrl-C does; asked again after a while, end it.

        Errors: StoreError if it belongs to somebody else.
        """
        begun = self._begun.get(folder)
        process = holder(folder)
        if process is None and begun is not None and begun.poll() is None:
            process = begun.pid
        if process is None:
            return
        first = self._asked.setdefault(folder, time.monotonic())
        wish = signal.SIGTERM if time.monotonic() - first > PATIENCE else signal.SIGINT
        try:
            os.kill(process, wish)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise StoreError(
                f"The run {folder.name} belongs to another user.", "Stop it where it was started."
            ) from error

    def stopping(self, folder: Path) -> bool:
        """Whether it was asked to stop and still runs."""
        return folder in self._asked and self.running(folder)


def hear_interrupts() -> None:
    """Let runs that are started from here hear a wish to stop.

    A shell starts what it puts into the background with Ctrl-C switched off, and that is handed on
    to every process below. Call it in the main thread.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def tail(path: Path, most: int = TAIL) -> str:
    """The last whole lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            data = file.read()
    except OSError:
        return ""
    text = data.decode("utf-8", "replace")
    return text.partition("\n")[2] if size > most else text


def written_at(log: Path) -> float | None:
    """When something was last written to a log; None if there is none."""
    try:
        return log.stat().st_mtime
    except OSError:
        return None


def last_words(folder: Path, log: str = LOG) -> tuple[str, str] | None:
    """What the last process of a run said when it failed: message and way out; None if it did
    not. log: the file in the folder that it wrote to."""
    lines = tail(folder / log).splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith(BEGIN)]
    lines = lines[starts[-1] + 1 :] if starts else lines
    for place, line in enumerate(lines):
        if line.startswith("Error: "):
            hint = lines[place + 1].strip() if place + 1 < len(lines) else ""
            return line.removeprefix("Error: ").strip(), hint
    return None
