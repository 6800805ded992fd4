"""A program that ends when the process that began it does, however that ends.

In: a command; its standard input is the tether. Out: the command's exit code. When the input ends,
and a killed process' pipes do, the command and all that it started are told to end, and killed if
they do not. Knows nothing of what runs.

    python -m potstill.core.tether PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial

from potstill.core.processes import end_with_parent

PATIENCE_SECONDS = 20.0


def begin(command: list[str], **options: object) -> subprocess.Popen[bytes]:
    """Start a command on a tether; `end` lets it go. options: of Popen.

    Errors: OSError."""
    held = [sys.executable, "-m", __name__, *command]
    return subprocess.Popen(held, stdin=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def end(process: subprocess.Popen[bytes]) -> None:
    """End what `begin` started, and wait until it has. May be called twice."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(PATIENCE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    """Run the command until it ends, or until the input does."""
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # Ray kills a worker's children first, this process too: then Linux tells the command.
            preexec_fn=partial(end_with_parent, signal.SIGTERM) if os.name == "posix" else None,
        )
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\n")
        return 127
    threading.Thread(target=_listen, args=(child,), daemon=True).start()
    code = child.wait()
    _tell(child.pid, signal.SIGKILL)  # what it left running
    return code if code >= 0 else 128 - code


def _listen(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    _tell(child.pid, signal.SIGTERM)
    try:
        child.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        _tell(child.pid, signal.SIGKILL)


def _tell(group: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, what)


if __name__ == "__main__":
    sys.exit(main())
