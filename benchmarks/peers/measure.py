"""What the peers' scripts share: their arguments, the rows, memory settings, and one result line.

In: a command line. Out: `Options`, batches of rows, and one JSON object on standard output with the
seconds and tokens of each step. Imported by scripts of this folder that run as processes of their
own, in the environment of the peers: knows nothing of Potstill and imports nothing heavy.

A token that counts is one of a row, prompt and completion; padding never counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LEARNING_RATE = 1e-4
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


@dataclass(frozen=True)
class Precision:
    """In which types the models are loaded, and whether the student and teacher run in autocast."""

    student: str
    teacher: str
    autocast: bool


PRECISIONS = {
    "fp32": Precision("float32", "float32", autocast=False),
    "autocast": Precision("float32", "float32", autocast=True),
    "mixed": Precision("float32", "bfloat16", autocast=True),
    "bf16": Precision("bfloat16", "bfloat16", autocast=True),
    "pure-bf16": Precision("bfloat16", "bfloat16", autocast=False),
}
"""What `--dtype` may say; autocast is to bf16."""


@dataclass(frozen=True)
class Options:
    """The command line. `batches`: one a step, the warm-up's first."""

    model: Path
    student: Path
    batches: list[list[dict[str, Any]]]
    batch: int
    steps: int
    warmup: int
    dtype: str
    malloc: str
    threads: int

    @property
    def precision(self) -> Precision:
        """What `dtype` stands for."""
        return PRECISIONS[self.dtype]


@dataclass
class Clock:
    """Seconds of steps: from the end of one to the end of the next, so nothing is left out."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    last: float = 0.0

    def start(self) -> None:
        """The first step begins."""
        self.last = time.perf_counter()

    def step(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def parse(doc: str, arguments: Sequence[str] | None = None) -> Options:
    """Read the command line and the rows, and set what has to be set before torch is imported."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines, from rows.py")
    parser.add_argument("--model", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--student", type=Path, required=True, help="the student's folder")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--malloc",
        choices=("default", "raised"),
        default="default",
        help="raised: glibc keeps freed memory for reuse",
    )
    parser.add_argument("--threads", type=int, default=2)
    found = vars(parser.parse_args(arguments))
    count = found["batch"] * (found["warmup"] + found["steps"])
    try:
        rows = read_rows(found.pop("rows"), count)
    except (OSError, ValueError) as error:
        parser.error(f"the rows cannot be read: {error}")
    if len(rows) < count:
        parser.error(f"{count} rows are needed for these steps, the file has {len(rows)}")
    starts = range(0, count, found["batch"])
    batches = [rows[start : start + found["batch"]] for start in starts]
    os.environ["HF_HUB_OFFLINE"] = "1"  # both models are folders
    os.environ["OMP_NUM_THREADS"] = str(found["threads"])
    if found["malloc"] == "raised":
        raise_malloc_thresholds()
    return Options(batches=batches, **found)


def read_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a file, or all if there are fewer."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


def raise_malloc_thresholds() -> None:
    """glibc: reuse large blocks instead of returning each to the kernel, as training frees them.

    Errors: SystemExit where malloc does not take the settings, so that none is measured by mistake.
    """
    if sys.platform != "linux":
        raise SystemExit("--malloc raised needs glibc.")
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1))
    if not all(mallopt(name, value) for name, value in settings):
        raise SystemExit("This glibc does not take the thresholds of --malloc raised.")


def claim_stdout() -> TextIO:
    """The real standard output, for the result alone; what others print now goes to stderr."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, as the kernel has noted it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM; peak memory needs Linux.")


def write(stdout: TextIO, peer: str, options: Options, clock: Clock) -> None:
    """Print the result line. Lists have one entry a measured step; the warm-up's are apart."""
    tokens = [sum(len(row["ids"]) for row in batch) for batch in options.batches]
    first = options.warmup
    line = {
        "peer": peer,
        "dtype": options.dtype,
        "malloc": options.malloc,
        "threads": options.threads,
        "batch": options.batch,
        "seconds": clock.seconds[first:],
        "tokens": tokens[first:],
        "losses": clock.losses[first:],
        "warmup_seconds": clock.seconds[:first],
        "warmup_losses": clock.losses[:first],
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": {"python": sys.version.split()[0], **_versions()},
    }
    print(json.dumps(line), file=stdout, flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
