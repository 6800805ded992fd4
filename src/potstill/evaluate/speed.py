"""How fast a model answers one user on this machine, and how much memory that takes.

In: ways to load each model, one prompt. Out: tokens a second, seconds to the first token, peak
memory. Knows nothing of quality.

Batch of one, greedy, a fixed number of tokens (an early stop would flatter a model that says
little). The models are timed in turn, round after round, so that whatever else slows the
machine slows all of them; the median of the rounds counts. One model is in memory at a time.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(frozen=True)
class Speed:
    """Figures of one model; memory is of the whole process while it holds only this model."""

    tokens_per_second: float
    time_to_first_token_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Timing:
    first: float
    rest: float


def measure_speed(
    loaders: Mapping[str, Callable[[], Any]],
    prompts: Mapping[str, Sequence[int]],
    tokens: int,
    rounds: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Speed]:
    """Time every model `rounds` times in turn; `tell` hears how many timings are done.

    prompts: each model's, as token ids. tokens: how many are decoded after the first one.
    """
    timings: dict[str, list[_Timing]] = {name: [] for name in loaders}
    memory: dict[str, int] = {}
    for _ in range(rounds):
        for name, load in loaders.items():
            _release_memory()
            _reset_peak_memory()
            model = load()
            _decode(
                model, prompts[name], tokens=2
            )  # warm-up: first use allocates and picks kernels
            timings[name].append(_decode(model, prompts[name], tokens))
            memory[name] = max(memory.get(name, 0), peak_memory_bytes())
            del model
            tell(sum(len(found) for found in timings.values()))
    _release_memory()
    return {
        name: Speed(
            tokens_per_second=tokens / statistics.median(timing.rest for timing in found),
            time_to_first_token_s=statistics.median(timing.first for timing in found),
            peak_memory_bytes=memory[name],
        )
        for name, found in timings.items()
    }


@torch.inference_mode()
def _decode(model: Any, prompt: Sequence[int], tokens: int) -> _Timing:
    cache = DynamicCache()
    start = time.perf_counter()
    step = torch.tensor([list(prompt)])
    first = 0.0
    for position in range(tokens + 1):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = output.logits[:, -1].argmax(-1, keepdim=True)
        if position == 0:
            first = time.perf_counter() - start
    return _Timing(first, time.perf_counter() - start - first)


def peak_memory_bytes() -> int:
    """Highest resident memory since the last reset; since the process began where that fails."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak_memory() -> None:
    """Linux lets a process reset its own high-water mark; elsewhere the figure only rises."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _release_memory() -> None:
    """Give freed memory back, or the next model's figure would carry the last one's."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc
