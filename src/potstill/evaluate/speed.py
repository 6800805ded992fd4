"""How fast a model answers one user on this machine, and how much memory that takes.

In: ways to load each model, one prompt. Out: tokens a second, seconds to load, to the first token
and between tokens, peak memory, and tokens a second of several requests at once. Knows nothing of
quality.

Batch of one, greedy, a fixed number of tokens (an early stop would flatter a model that says
little). The models are timed in turn, round after round, so that whatever else slows the
machine slows all of them; the median of the rounds counts. One model is in memory at a time.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from potstill.core.machine import own_peak_bytes
from potstill.models.prefix_reader import layers_of


@dataclass(frozen=True)
class Speed:
    """Figures of one model; memory is of the whole process while it holds only this model, on a GPU
    of what is allocated there.

    token_p50_s, token_p95_s: half and 95% of the tokens after the first came sooner, of all rounds.
    parallel: requests at once -> tokens a second of all of them, once their prompts are read.
    """

    tokens_per_second: float
    time_to_first_token_s: float
    peak_memory_bytes: int
    load_s: float
    token_p50_s: float
    token_p95_s: float
    parallel: Mapping[str, float]


@dataclass(frozen=True)
class _Timing:
    load: float
    first: float
    steps: Sequence[float]


def measure_speed(
    loaders: Mapping[str, Callable[[], Any]],
    prompts: Mapping[str, Sequence[int]],
    tokens: int,
    rounds: int,
    parallel: Sequence[int] = (),
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Speed]:
    """Time every model `rounds` times in turn; `tell` hears how many timings are done.

    prompts: each model's, as token ids. tokens: how many are decoded after the first one.
    parallel: how many requests at once, timed in the last round, after the memory was read.
    """
    timings: dict[str, list[_Timing]] = {name: [] for name in loaders}
    memory: dict[str, int] = {}
    together: dict[str, dict[str, float]] = {name: {} for name in loaders}
    for number in range(rounds):
        for name, load in loaders.items():
            release_memory()
            reset_peak_memory()
            began = time.perf_counter()
            model = load()
            loaded = time.perf_counter() - began
            _decode(model, prompts[name], 2)  # warm-up: first use allocates and picks kernels
            first, *steps = _decode(model, prompts[name], tokens)
            timings[name].append(_Timing(loaded, first, steps))
            memory[name] = max(memory.get(name, 0), _peak_bytes(model))
            for requests in parallel if number == rounds - 1 else ():
                rate = _throughput(model, prompts[name], tokens, requests)
                together[name][str(requests)] = rate
            del model
            tell(sum(len(found) for found in timings.values()))
    release_memory()
    return {
        name: _speed(found, memory[name], together[name], tokens) for name, found in timings.items()
    }


def _speed(
    found: Sequence[_Timing], memory: int, parallel: Mapping[str, float], tokens: int
) -> Speed:
    """The medians of the rounds."""
    steps = sorted(step for timing in found for step in timing.steps)
    return Speed(
        tokens_per_second=tokens / statistics.median(sum(timing.steps) for timing in found),
        time_to_first_token_s=statistics.median(timing.first for timing in found),
        peak_memory_bytes=memory,
        load_s=statistics.median(timing.load for timing in found),
        token_p50_s=statistics.median(steps),
        token_p95_s=steps[math.ceil(0.95 * len(steps)) - 1],
        parallel=parallel,
    )


@torch.inference_mode()
def _decode(model: Any, prompt: Sequence[int], tokens: int) -> list[float]:
    """Seconds to the first token, and of each of `tokens` more."""
    cache = DynamicCache()
    step = torch.tensor([list(prompt)], device=model.device)
    times = []
    for _ in range(tokens + 1):
        began = time.perf_counter()
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = output.logits[:, -1].argmax(-1, keepdim=True)
        _await(model)
        times.append(time.perf_counter() - began)
    return times


@torch.inference_mode()
def _throughput(model: Any, prompt: Sequence[int], tokens: int, requests: int) -> float:
    """Tokens a second of so many requests that are answered in one batch."""
    read = DynamicCache()
    ids = torch.tensor([list(prompt)], device=model.device)
    output = model(input_ids=ids, past_key_values=read, use_cache=True, logits_to_keep=1)
    step = output.logits[:, -1].argmax(-1, keepdim=True).repeat(requests, 1)
    cache = DynamicCache(
        [(keys.repeat(requests, 1, 1, 1), values.repeat(requests, 1, 1, 1))
         for keys, values in layers_of(read)]
    )  # fmt: skip
    _await(model)
    began = time.perf_counter()
    for _ in range(tokens):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = output.logits[:, -1].argmax(-1, keepdim=True)
    _await(model)
    return requests * tokens / (time.perf_counter() - began)


def _await(model: Any) -> None:
    """Until a GPU has done what it was given; a processor always has."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(model: Any) -> int:
    """Of the device that the model computes on."""
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return own_peak_bytes()


def reset_peak_memory() -> None:
    """Linux lets a process reset its own high-water mark; elsewhere the figure only rises."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def release_memory() -> None:
    """Give freed memory back, or the next model's figure would carry the last one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc
