"""The term of attention maps: every pair of layers over a packed micro-batch.

In: queries and keys that both models' passes left, which layers are compared, the batch. Out: one
scalar, a sum over active tokens. Knows nothing of how a map is compared (`maps.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from potstill.distill.attention import Seen
from potstill.distill.batches import MicroBatch
from potstill.distill.maps import attention_kl
from potstill.errors import TrainingError


def map_sums(
    pairs: Sequence[tuple[int, int]],
    batch: MicroBatch,
    ours: Mapping[int, Seen],
    theirs: Mapping[int, Seen],
) -> Tensor:
    """KL of attention maps: mean over pairs of layers of the sum over active tokens."""
    counts = torch.zeros(batch.input_ids.numel(), device=batch.input_ids.device)
    counts[batch.positions] = batch.attention_counts
    total = counts.new_zeros(())
    if batch.segments is None:
        raise TrainingError(
            "Attention maps can be compared in packed batches alone.",
            "Set distill.batching: packed, or distill.attention.weight to 0.",
        )
    for student_layer, teacher_layer in pairs:
        one, other = ours[student_layer - 1], theirs[teacher_layer - 1]
        if one.window != other.window:
            raise TrainingError(
                f"Student layer {student_layer} sees {one.window or 'all'} tokens, teacher "
                f"layer {teacher_layer} {other.window or 'all'}: their maps differ by nature.",
                "Choose pairs with the same window in distill.attention.layers.",
            )
        for segment in batch.segments:
            own = slice(segment.start, segment.start + segment.length)
            total = total + attention_kl(
                one.queries[:, own],
                one.keys[:, own],
                other.queries[:, own].detach(),
                other.keys[:, own].detach(),
                student_scale=one.scale,
                teacher_scale=other.scale,
                weights=counts[own],
                mask=segment.mask(one.window, counts.device),
            )
    return total / len(pairs)
