"""Attention of one layer over a pack of 4,096 tokens, by matrix products and by flash attention.

    python benchmarks/engine_attention.py

Forward and backward in bf16, nine query heads and three of keys and values of 64 features, as
SmolLM2-135M has; the two sides in turn, the best of eight each. Prints one JSON object a pack.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill.attention import Segment, _Multiplied
from potstill.distill.memory import raise_malloc_thresholds

HEADS, KEY_HEADS, FEATURES = 9, 3, 64
PACKS: dict[str, list[int]] = {
    "32 of 128": [128] * 32,
    "16 of 256": [256] * 16,
    "8 of 512": [512] * 8,
    "4 of 1024": [1024] * 4,
}


def main() -> None:
    """Time and print."""
    raise_malloc_thresholds()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    for name, lengths in PACKS.items():
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        segments = [Segment(*one) for one in zip(starts, lengths, strict=True)]
        total = sum(lengths)
        queries, keys, values = (
            torch.randn(heads, total, FEATURES).bfloat16().requires_grad_()
            for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        )
        upstream = torch.randn(HEADS, total, FEATURES).bfloat16()

        def flash(inputs: Any = (queries, keys, values), segments: Any = segments) -> Tensor:
            query, key, value = inputs
            key, value = (one.repeat_interleave(HEADS // KEY_HEADS, 0) for one in (key, value))
            parts = [slice(one.start, one.start + one.length) for one in segments]
            return torch.cat(
                [
                    F.scaled_dot_product_attention(
                        query[None, :, own], key[None, :, own], value[None, :, own], is_causal=True
                    )[0]
                    for own in parts
                ],
                1,
            )

        def ours(inputs: Any = (queries, keys, values), segments: Any = segments) -> Tensor:
            found: Tensor = _Multiplied.apply(*inputs, segments, FEATURES**-0.5, None)
            return found

        seconds: dict[str, list[float]] = {"flash": [], "ours": []}
        for _ in range(8):
            for side, compute in (("flash", flash), ("ours", ours)):
                seconds[side].append(_timed(compute, (queries, keys, values), upstream))
        best = {side: min(some) for side, some in seconds.items()}
        line = {"name": name.replace(" ", "_"), "pack": f"{name} tokens"}
        print(json.dumps(line | best), flush=True)


def _timed(compute: Callable[[], Tensor], inputs: tuple[Tensor, ...], upstream: Tensor) -> float:
    began = time.perf_counter()
    torch.autograd.grad(compute(), inputs, upstream)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
