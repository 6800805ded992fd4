"""Which smaller shapes of a decoder meet a target.

In: the shape of a model, the most weights that may be left, which axes may be cut. Out: the shapes
that meet it and of which no other is larger in every size, nearest to the model first. Arithmetic
alone: which of them does the least harm is measured elsewhere. Needs no torch.

Hidden and intermediate size are the lengths of the rows that quantisation works on. The k-quants of
llama.cpp need multiples of 256 there; a row of another length falls back to a coarser, larger
format. So a size that is cut becomes a multiple of `round_to`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from potstill.errors import ModelError
from potstill.models.shape import Shape

Axes = Literal["depth", "width", "both"]
SIZES = ("layers", "hidden", "intermediate", "heads", "kv_heads")
BF16_BYTES = 2
FINEST = 8
"""The least rounding that is tried on the user's behalf."""
GRID, MOST_SHAPES = 24, 64  # sizes of an axis, shapes that are named: both far above what is tried
HARM = {"layers": 1.0, "hidden": 2.0, "intermediate": 0.7, "heads": 1.0, "kv_heads": 0.3}
"""How much worse a student starts for a size that is halved, about, against half of the layers
(docs/experiments.md). Only decides which shapes are looked at first."""


@dataclass(frozen=True)
class Target:
    """The most weights that may be left, and how the user said so."""

    limit: float
    said: str
    reading: bool = False
    """Counted are those that are read for one new token (`Shape.read_parameters`)."""

    def counted(self, shape: Shape) -> int:
        """The weights of the shape that the target speaks of."""
        return shape.read_parameters if self.reading else shape.parameters

    def met(self, shape: Shape) -> bool:
        """Whether the shape is small enough."""
        return self.counted(shape) <= self.limit


@dataclass(frozen=True)
class Found:
    """Shapes that meet a target, the least harmful first, about; and the rounding they keep to."""

    shapes: list[Shape]
    round_to: int


def find(shape: Shape, target: Target, axes: Axes, round_to: int) -> Found:
    """The largest shapes that meet the target.

    Where no multiple of `round_to` does, half of it is tried, and so on: `Found.round_to` says
    what was needed. Errors: ModelError that names the least that is possible.
    """
    if target.met(shape):
        return Found([shape], round_to)
    step = round_to
    while True:
        fitting = [one for one in _all(shape, target, axes, step) if target.met(one)]
        if fitting:
            return Found(_largest(shape, fitting), step)
        if step <= FINEST or axes == "depth":
            break
        step = step // 2
    widths = [shape] if axes == "depth" else _widths(shape, step)
    least = min(widths, key=target.counted)
    least = least if axes == "width" else replace(least, layers=1)
    raise ModelError(
        f"{target.said} leaves {target.limit:,.0f} weights, but the smallest student that can be "
        f"cut along {axes if axes != 'both' else 'depth and width'} has "
        f"{target.counted(least):,} ({target.counted(least) / target.counted(shape):.0%}).",
        "Raise the target" + ("." if axes == "both" else ", or set distill.student.axes: both."),
    )


def harm(shape: Shape, cut: Shape) -> float:
    """A guess at what the cut costs, to try the likely shapes first; 0 for the whole model."""
    return sum(
        weight * math.log2(getattr(shape, name) / getattr(cut, name))
        for name, weight in HARM.items()
    )


def is_round(shape: Shape, round_to: int) -> bool:
    """Whether the rows of its matrices have lengths that quantise well."""
    return shape.hidden % round_to == 0 and shape.intermediate % round_to == 0


def _largest(shape: Shape, fitting: list[Shape]) -> list[Shape]:
    """Those that none of the others contains, the least harmful first, about."""
    largest: list[Shape] = []
    # What contains a shape does less harm, so it comes before it.
    for one in sorted(fitting, key=lambda one: (harm(shape, one), _sizes(one))):
        if not any(_contains(two, one) for two in largest):
            largest.append(one)
        if len(largest) == MOST_SHAPES:
            break
    return largest


def _all(shape: Shape, target: Target, axes: Axes, step: int) -> Iterator[Shape]:
    """Every width, with the most layers that meet the target (all, where depth is not cut)."""
    widths = [shape] if axes == "depth" else _widths(shape, step)
    for width in widths:
        if axes == "width":
            yield width
            continue
        without = target.counted(replace(width, layers=0))
        layers = int((target.limit - without) // width.layer_parameters)
        if layers >= 1:
            yield replace(width, layers=min(shape.layers, layers))


def _widths(shape: Shape, step: int) -> list[Shape]:
    return [
        replace(shape, hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=kv_heads)
        for hidden in _rounded(shape.hidden, step)
        for intermediate in _rounded(shape.intermediate, step)
        for heads, kv_heads in head_counts(shape.heads, shape.kv_heads)
        if loads(shape, hidden, heads)
    ]


def _rounded(size: int, step: int) -> list[int]:
    """The size itself and the multiples below it; of a fine grid some 24."""
    stride = step * max(1, math.ceil(size / step / GRID))
    return [size, *(n for n in range(stride * ((size - 1) // stride), 0, -stride))]


def head_counts(heads: int, kv_heads: int) -> list[tuple[int, int]]:
    """(heads, kv_heads) that can be left: whole groups go, or equally many heads of each group."""
    per_group = heads // kv_heads
    return [
        (groups * each, groups)
        for groups in range(kv_heads, 0, -1)
        for each in range(per_group, 0, -1)
    ]


def loads(shape: Shape, hidden: int, heads: int) -> bool:
    """Whether transformers takes the configuration: these families want the hidden size to be a
    multiple of the heads. A Llama without biases that is not is saved as the Mistral it equals."""
    if shape.family == "llama" and not (shape.input_bias or shape.output_bias or shape.mlp_bias):
        return True
    return shape.family not in ("llama", "gemma2", "gemma3_text") or hidden % heads == 0


def _contains(larger: Shape, smaller: Shape) -> bool:
    pairs = list(zip(_sizes(larger), _sizes(smaller), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _sizes(shape: Shape) -> tuple[int, ...]:
    return tuple(getattr(shape, name) for name in SIZES)
