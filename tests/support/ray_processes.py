"""Which processes of a local Ray are below this one, and the end of one of them.

Ray names its workers' processes `ray::Class.method`; they are children of children of the process
that began Ray.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def ray_workers(word: str, below: int | None = None) -> list[int]:
    """Processes of Ray below `below` (this one) whose name has the word."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((folder / "stat").read_text("utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended in the meantime
        parents[int(folder.name)], names[int(folder.name)] = parent, name
    root = os.getpid() if below is None else below
    return [
        process
        for process, name in names.items()
        if name.startswith("ray::") and word in name and _is_below(process, root, parents)
    ]


def kill_one(word: str) -> int | None:
    """End one of them as a machine that is taken away does; None if there is none."""
    for process in ray_workers(word):
        os.kill(process, signal.SIGKILL)
        return process
    return None


def _is_below(process: int, root: int, parents: dict[int, int]) -> bool:
    while process > 1:
        process = parents.get(process, 0)
        if process == root:
            return True
    return False
