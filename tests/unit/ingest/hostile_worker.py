"""The reading process, put into the hands of hostile files: what they do is in their names."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

from potstill.ingest import worker
from potstill.ingest.one import read_one


def read(task: Any, *others: Any) -> Any:
    if task.name.startswith("hang"):
        time.sleep(600)
    if task.name.startswith("busy"):
        while True:
            others[-1](0, 0, "")
    if task.name.startswith("abort"):
        os.abort()
    if task.name.startswith("fault"):
        ctypes.string_at(0)
    if task.name.startswith("grow"):
        held = [bytearray(os.urandom(1 << 20)) * 50 for _ in range(12)]
        time.sleep(600)
        del held
    if task.name.startswith("killed"):
        os.kill(os.getpid(), 9)
    if task.name.startswith("bug"):
        raise ZeroDivisionError("nobody foresaw this")
    if task.name.startswith("full"):
        raise MemoryError
    if task.name.startswith("loud"):
        print("a library that prints", flush=True)  # noqa: T201
    return read_one(task, *others)


worker.read_one = read
if __name__ == "__main__":
    sys.exit(worker.main())
