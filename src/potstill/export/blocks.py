"""Does each block of a quantised GGUF still say what the file it was made of says?

In: two GGUF files. Out: the largest error of each type of block; ModelError where a block's is more
than its type can make. Knows nothing of models or texts.

A wrong block among hundreds of thousands hardly moves a mean over tokens, so figures do not show
it. What a block may be off follows from its type: a share of the largest number among the 256
that stand around it, by half a step of its grid, and by as much again for the rounding of its
scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import ModelError

EXACT = ("f32", "f16", "bf16")
"""Kinds that are made of the student's own weights, not of the F16 file."""
GROUP = 256
MAX_ERROR = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 1 / 256,
    "Q8_0": 0.01,
    "Q6_K": 0.08,
    "Q5_K": 0.16,
    "Q5_0": 0.16,
    "Q5_1": 0.16,
    "Q4_K": 0.3,
    "Q4_0": 0.3,
    "Q4_1": 0.3,
}
"""Largest error of a number, as a share of the largest around it, by the type of its block."""
AT_ONCE = 1 << 22
"""Numbers compared at once."""


def block_errors(source: Path, file: Path) -> dict[str, float]:
    """Type -> the largest error of any of its blocks, as a share of the numbers around it.

    Errors: ModelError if a tensor is missing, has another shape, or a block that is further off
    than its type allows.
    """
    from gguf import GGUFReader

    before = {one.name: one for one in GGUFReader(source).tensors}
    after = {one.name: one for one in GGUFReader(file).tensors}
    if before.keys() != after.keys():
        odd = ", ".join(sorted(before.keys() ^ after.keys())[:3])
        raise ModelError(f"{file.name} and {source.name} do not hold the same tensors: {odd}.")
    worst: dict[str, float] = {}
    for name, tensor in after.items():
        kind = tensor.tensor_type.name
        if list(tensor.shape) != list(before[name].shape):
            raise ModelError(f"{file.name}: {name} has another shape than in {source.name}.")
        error, row = _error(before[name], tensor)
        allowed = MAX_ERROR.get(kind)
        if allowed is not None and not error <= allowed:  # so that NaN is refused
            raise ModelError(
                f"{file.name}: {name} holds a damaged block of type {kind}, in row {row}: it is "
                f"{error:.1%} off what {source.name} says, and its type allows {allowed:.1%}.",
                "Run the same command again; if it comes back, the quantiser is at fault.",
            )
        worst[kind] = max(worst.get(kind, 0.0), error)
    return worst


def _error(before: Any, after: Any) -> tuple[float, int]:
    """The largest error of a tensor's groups, and its row; NaN if there is any."""
    width = int(after.shape[0])
    rows = max(1, AT_ONCE // width)
    old, new = (one.data.reshape(-1, one.data.shape[-1]) for one in (before, after))
    worst, place = 0.0, 0
    for start in range(0, len(new), rows):
        a, b = (
            _plain(part[start : start + rows], one) for part, one in ((old, before), (new, after))
        )
        with np.errstate(invalid="ignore", over="ignore"):
            errors = _of_groups(np.abs(a - b)) / np.maximum(_of_groups(np.abs(a)), 1e-30)
        errors = np.where(np.isnan(errors), np.inf, errors)
        found = int(errors.max(axis=1).argmax())
        if errors[found].max() > worst:
            worst, place = float(errors[found].max()), start + found
    return worst, place


def _plain(part: Any, tensor: Any) -> Any:
    from gguf.quants import dequantize

    return dequantize(part, tensor.tensor_type).astype(np.float32)


def _of_groups(numbers: Any) -> Any:
    """[rows, groups]: the largest of each group of `GROUP` numbers, the last may be shorter."""
    return np.maximum.reduceat(numbers, range(0, numbers.shape[1], GROUP), axis=1)
