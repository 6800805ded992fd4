"""Rows that begin alike: their common beginning is computed once.

    passage -+- question 1 - answer 1
             +- question 2 - answer 2          one sequence: passage, end 1, end 2

In: rows' token ids. Out: families, and for each family where its rows stand in its sequence, which
positions they have and what each token may see. Knows nothing of losses or tensors' batches.

A causal model gives a beginning the same states whatever follows it. So the rows of a family
become one sequence: the beginning, then each row's own end, whose positions go on from the
beginning and which sees the beginning and itself. Every state, and so every loss and gradient, is
that of separate rows, up to rounding. It is the tree attention of decoding (Miao et al. 2023,
"SpecInfer", arXiv:2305.09781), used for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.models.prefixes import common_prefix

Family = tuple[int, ...]
"""Numbers of rows that share a beginning; a row that shares nothing is a family of its own."""

LARGEST_FAMILY = 1024
"""Tokens of a family's sequence, or twice its longest row: its attention costs their square."""
LEAST_GAIN = 32
"""A row joins a family if that saves so many tokens."""


class RowSpan(NamedTuple):
    """Where a row stands in the flattened input of a batch."""

    shared_start: int
    shared: int
    """Tokens of the beginning that the row shares; 0 for a family of one."""
    own_start: int
    length: int

    def flat(self) -> Tensor:
        """Flat position of each of the row's tokens, [length] int64."""
        beginning = torch.arange(self.shared_start, self.shared_start + self.shared)
        own = torch.arange(self.own_start, self.own_start + self.length - self.shared)
        return torch.cat([beginning, own])


def group(rows: Sequence[Sequence[int]], *, computed: int, in_full: int) -> list[Family]:
    """Families of rows of token ids, in the order of their ids.

    computed: most tokens of a family's sequence. in_full: most tokens of its rows, each counted in
    full. A single row may have more. A row joins the family before it only where that saves.
    """
    families: list[Family] = []
    current: list[int] = []
    size = total = 0
    for number in sorted(range(len(rows)), key=lambda number: (tuple(rows[number]), number)):
        ids = rows[number]
        if current:
            # In sorted order nothing between two rows shares less than these two do.
            shared = common_prefix(rows[current[0]], ids)
            joined = total + len(ids) - len(current) * shared
            most = min(computed, max(LARGEST_FAMILY, 2 * len(ids)))
            saves = size + len(ids) - joined >= LEAST_GAIN
            if saves and joined <= most and total + len(ids) <= in_full:
                current.append(number)
                size, total = joined, total + len(ids)
                continue
            families.append(tuple(current))
        current, size, total = [number], len(ids), len(ids)
    return [*families, tuple(current)] if current else families


def shared_tokens(family: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all rows of a family share; 0 for a single row."""
    if len(family) == 1:
        return 0
    return min(common_prefix(family[0], ids) for ids in family[1:])


def sequence_tokens(lengths: Sequence[int], shared: int) -> int:
    """Length of the sequence of rows with these lengths that share their beginning."""
    return sum(lengths) - (len(lengths) - 1) * shared


def spans_of(lengths: Sequence[int], shared: int, start: int) -> list[RowSpan]:
    """Where the rows of a family stand if its sequence begins at flat position `start`."""
    found, own = [], start + shared
    for length in lengths:
        found.append(RowSpan(start, shared, own, length))
        own += length - shared
    return found


def positions_and_mask(family: Sequence[RowSpan], width: int) -> tuple[Tensor, Tensor]:
    """Position of each token in its row, [width] int64, and what it sees, [width, width] bool.

    Padding sees only itself: an empty row of a mask would be a softmax over nothing.
    """
    start, shared = family[0].shared_start, family[0].shared
    positions = torch.zeros(width, dtype=torch.int64)
    positions[:shared] = torch.arange(shared)
    mask = torch.eye(width, dtype=torch.bool)
    mask[:shared, :shared] = True
    for span in family:
        first, last = span.own_start - start, span.own_start - start + span.length - shared
        positions[first:last] = torch.arange(shared, span.length)
        mask[first:last, :shared] = True
        mask[first:last, first:last] = True
    return positions, mask.tril()
