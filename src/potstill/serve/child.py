"""How an engine's process begins: its job, and a stream for what it says.

In: standard input and output as the gateway gave them. Out: the job, a way to say one JSON line at
a time. The other end is `engine.ChildEngine`. Knows no engine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any


class Line:
    """The way to the gateway; may be used by several threads."""

    def __init__(self) -> None:
        # Libraries print what they like; what is said here has a stream of its own.
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._writing = threading.Lock()

    def say(self, line: dict[str, Any]) -> None:
        """One line to the gateway."""
        with self._writing:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()

    def failed(self, error: Exception) -> None:
        """That there will be no engine, and why."""
        self.say({"error": " ".join(str(error).split())[:300]})


def begun() -> tuple[dict[str, Any], Line]:
    """The job, the first line of standard input, and the way to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway decides what Ctrl-C means
    line = Line()
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    return job, line
