"""Deals chunks out to training, validation and test before anything else is done with their rows.

In: rows with their provenance, chunks, fractions, a seed. Out: chunk id -> split, and the chunks
whose text reaches into a chunk of a more protected split. Knows nothing of rows' content.

The unit is the document where there are many, else the chunk. Units are drawn by the hash of seed
and id, so that adding a document does not reshuffle the others. Where chunks overlap, each split is
a run of neighbours instead, so that only the chunks at the borders are lost.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from potstill.records import Chunk

Split = Literal["train", "validation", "test"]
MOST_PROTECTED_FIRST: tuple[Split, ...] = ("test", "validation", "train")
MANY_DOCUMENTS = 10


def assign(
    chunks: Sequence[Chunk],
    rows: Mapping[str, int],
    *,
    validation: float,
    test: float,
    split_by: Literal["auto", "document", "chunk"],
    seed: int,
) -> dict[str, Split]:
    """Chunk id -> split.

    rows: chunk id -> number of its rows; chunks without rows go to training, where they cost
    nothing. validation, test: shares of the rows; a unit is never divided, so shares are met as
    nearly as whole units allow, and each split gets at least one unit where there are three.
    """
    used = [chunk for chunk in chunks if rows.get(chunk.id)]
    documents = list(dict.fromkeys(chunk.document for chunk in used))
    if split_by == "auto":
        split_by = "document" if len(documents) >= MANY_DOCUMENTS else "chunk"
    unit_of = {chunk.id: chunk.document if split_by == "document" else chunk.id for chunk in chunks}
    weight: Counter[str] = Counter()
    for chunk in used:
        weight[unit_of[chunk.id]] += rows[chunk.id]
    if split_by == "chunk" and overlapping(chunks):
        order = _rotated(list(weight), seed)
    else:
        order = sorted(weight, key=lambda unit: _lot(seed, unit))
    split_of_unit = _deal(order, weight, validation, test)
    return {chunk.id: split_of_unit.get(unit_of[chunk.id], "train") for chunk in chunks}


def _deal(
    order: Sequence[str], weight: Mapping[str, int], validation: float, test: float
) -> dict[str, Split]:
    total = sum(weight.values())
    dealt: dict[str, Split] = {}
    place = 0
    shares: tuple[tuple[Split, float, int], ...] = (
        ("test", test, 2),
        ("validation", validation, 1),
    )
    for split, share, kept_back in shares:
        taken = 0
        while place < len(order) - kept_back:
            unit = order[place]
            # Take the unit if that brings the share nearer than leaving it would.
            if taken and share * total - taken < weight[unit] / 2:
                break
            dealt[unit] = split
            taken += weight[unit]
            place += 1
    dealt.update(dict.fromkeys(order[place:], "train"))
    return dealt


def overlapping(chunks: Sequence[Chunk]) -> bool:
    """Whether any two chunks of one document share text."""
    furthest: dict[str, int] = {}
    for chunk in sorted(chunks, key=lambda one: (one.document, one.start)):
        if chunk.start < furthest.get(chunk.document, 0):
            return True
        furthest[chunk.document] = max(furthest.get(chunk.document, 0), chunk.end)
    return False


def leaking(chunks: Sequence[Chunk], splits: Mapping[str, Split]) -> dict[str, str]:
    """Chunk id -> id of a chunk in a more protected split whose text it shares."""
    rank = {split: place for place, split in enumerate(MOST_PROTECTED_FIRST)}
    by_document: dict[str, list[Chunk]] = {}
    for chunk in sorted(chunks, key=lambda one: (one.document, one.start, one.end)):
        by_document.setdefault(chunk.document, []).append(chunk)
    found: dict[str, str] = {}
    for family in by_document.values():
        for place, first in enumerate(family):
            for second in family[place + 1 :]:
                if second.start >= first.end:
                    break
                one, other = rank[splits[first.id]], rank[splits[second.id]]
                if one < other:
                    found.setdefault(second.id, first.id)
                elif other < one:
                    found.setdefault(first.id, second.id)
    return found


def _lot(seed: int, unit: str) -> str:
    return hashlib.sha256(f"{seed}:{unit}".encode()).hexdigest()


def _rotated(order: list[str], seed: int) -> list[str]:
    """Neighbours stay neighbours; where the first split begins is drawn by lot."""
    start = int(_lot(seed, "start"), 16) % len(order) if order else 0
    return order[start:] + order[:start]
