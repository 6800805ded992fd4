"""Which process this is, said so that another one can tell whether it still runs.

In: a process id. Out: a mark that no later process shares. Linux tells when a process began; where
psutil is installed it does so elsewhere; else the id alone has to do. Knows nothing of what runs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

GONE = ""
SET_DEATH_SIGNAL = 1  # of Linux' prctl


def end_with_parent(by: signal.Signals) -> None:
    """Linux sends this process the signal when the one that began it ends, however that ends; on
    other systems nothing comes of it. Holds over an exec."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, by)


def mark_of(process: int) -> str:
    """When that process began, as text; `GONE` if there is none, or only its exit code is left."""
    if process <= 0:
        return GONE
    if Path("/proc/self/stat").exists():
        try:
            # The name, in brackets, may hold anything: what follows its last bracket is regular.
            fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        except OSError:
            return GONE
        state, began = fields.split()[0], fields.split()[19]
        return GONE if state in ("Z", "X") else began
    try:
        import psutil

        found = psutil.Process(process)
        return GONE if found.status() == psutil.STATUS_ZOMBIE else str(found.create_time())
    except ModuleNotFoundError:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return GONE
        except PermissionError:
            pass
        return "running"
    except psutil.Error:
        return GONE
