"""Deals rows out to training, validation and test before anything else is done with them.

In: rows with their provenance, chunks, fractions, a seed. Out: the split of each row, and the
chunks whose text reaches into a chunk of a more protected split. Knows nothing of rows' quality.

The unit is the document where there are many, else the chunk, else (a ready-made row without a
passage) the question. Units are drawn by the hash of seed and id, so that adding a document does
not reshuffle the others. Where chunks overlap, each split is a run of neighbours instead, so that
only the chunks at the borders are lost. Rows that vary another one go where that one goes. Where
rows have labels, units are dealt so that each split gets its share of each label.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from potstill.curate.text import words
from potstill.records import Chunk, Example

Split = Literal["train", "validation", "test"]
SplitBy = Literal["auto", "document", "chunk"]
MOST_PROTECTED_FIRST: tuple[Split, ...] = ("test", "validation", "train")
MANY_DOCUMENTS = 10


def split_rows(
    chunks: Sequence[Chunk],
    contexts: Sequence[Chunk],
    examples: Sequence[Example],
    *,
    validation: float,
    test: float,
    split_by: SplitBy,
    seed: int,
    together: Mapping[str, str] | None = None,
) -> tuple[list[Split], dict[str, Split]]:
    """The split of each row, and of each of `chunks`.

    Rows about `chunks` and ready-made rows (about one of `contexts`, or about nothing) are dealt
    apart, each by the same fractions. together: row -> group of rows without a passage that must
    not be parted.
    """
    roots = families(examples)
    own = {chunk.id for chunk in chunks}
    asked = [one for one, root in zip(examples, roots, strict=True) if one is root]
    of_chunk = assign(
        chunks,
        Counter(one.provenance.chunk for one in asked),
        validation=validation,
        test=test,
        split_by=split_by,
        seed=seed,
        labels=_labels(asked, lambda one: one.provenance.chunk),
    )
    ready = [one for one in roots if one.provenance.chunk not in own]
    unit_of = _unit_of(ready, contexts, split_by, together or {})
    alone = [one for one in asked if one.provenance.chunk not in own]
    of_unit = deal(
        Counter(unit_of(one) for one in alone), _labels(alone, unit_of), validation, test, seed
    )
    splits: list[Split] = []
    for root in roots:
        chunk = root.provenance.chunk
        splits.append(of_chunk[chunk] if chunk in own else of_unit[unit_of(root)])
    return splits, of_chunk


def families(examples: Sequence[Example]) -> list[Example]:
    """For each row the one it varies in the end: itself, if it varies none that is here."""
    by_id: dict[str, Example] = {}
    for example in examples:
        by_id.setdefault(example.id, example)
    roots = []
    for example in examples:
        root, met = example, {example.id}
        while (parent := by_id.get(root.provenance.parent or "")) and parent.id not in met:
            met.add(parent.id)
            root = parent
        roots.append(root)
    return roots


def _unit_of(
    ready: Sequence[Example],
    contexts: Sequence[Chunk],
    split_by: SplitBy,
    together: Mapping[str, str],
) -> Callable[[Example], str]:
    """The unit of a ready-made row: document, passage or question."""
    document = {chunk.id: chunk.document for chunk in contexts}

    def source(one: Example) -> str:
        return document.get(one.provenance.chunk, one.provenance.document)

    many = len({source(one) for one in ready}) >= MANY_DOCUMENTS
    if split_by == "document" or (split_by == "auto" and many):
        return lambda one: f"document {source(one)}"

    def unit(one: Example) -> str:
        if one.provenance.chunk:
            return f"chunk {one.provenance.chunk}"
        if one.id in together:
            return f"row {together[one.id]}"
        if one.provenance.parent is not None:  # a variant whose original is not here
            return f"row {one.provenance.parent}"
        return f"question {' '.join(words(one.question)) or one.id}"

    return unit


def _labels(
    examples: Sequence[Example], unit_of: Callable[[Example], str]
) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for one in examples:
        if one.label:
            found.setdefault(unit_of(one), Counter())[one.label] += 1
    return found


def assign(
    chunks: Sequence[Chunk],
    rows: Mapping[str, int],
    *,
    validation: float,
    test: float,
    split_by: SplitBy,
    seed: int,
    labels: Mapping[str, Counter[str]] | None = None,
) -> dict[str, Split]:
    """Chunk id -> split.

    rows: chunk id -> number of its rows; chunks without rows go to training, where they cost
    nothing. validation, test: shares of the rows; a unit is never divided, so shares are met as
    nearly as whole units allow, and each split gets at least one unit where there are three.
    labels: chunk id -> how many of its rows have which label.
    """
    used = [chunk for chunk in chunks if rows.get(chunk.id)]
    documents = list(dict.fromkeys(chunk.document for chunk in used))
    if split_by == "auto":
        split_by = "document" if len(documents) >= MANY_DOCUMENTS else "chunk"
    unit_of = {chunk.id: chunk.document if split_by == "document" else chunk.id for chunk in chunks}
    weight: Counter[str] = Counter()
    classes: dict[str, Counter[str]] = {}
    for chunk in used:
        weight[unit_of[chunk.id]] += rows[chunk.id]
        if labels and chunk.id in labels:
            classes.setdefault(unit_of[chunk.id], Counter()).update(labels[chunk.id])
    if split_by == "chunk" and overlapping(chunks):
        split_of_unit = _deal(_rotated(list(weight), seed), weight, validation, test)
    else:
        split_of_unit = deal(weight, classes, validation, test, seed)
    return {chunk.id: split_of_unit.get(unit_of[chunk.id], "train") for chunk in chunks}


def deal(
    weight: Mapping[str, int],
    labels: Mapping[str, Counter[str]],
    validation: float,
    test: float,
    seed: int,
) -> dict[str, Split]:
    """Unit -> split, drawn by lot; weight: unit -> its rows, labels: unit -> their labels."""
    order = sorted(weight, key=lambda unit: _lot(seed, unit))
    main = {unit: counts.most_common(1)[0][0] for unit, counts in labels.items()}
    if len(set(main.values())) < 2:
        return _deal(order, weight, validation, test)
    return _deal_evenly(order, weight, main, validation, test)


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


def _deal_evenly(
    order: Sequence[str],
    weight: Mapping[str, int],
    label: Mapping[str, str],
    validation: float,
    test: float,
) -> dict[str, Split]:
    """Each unit to the split that lags most behind its share, of the unit's label and of all."""
    share: dict[Split, float] = {
        "train": 1 - validation - test,
        "validation": validation,
        "test": test,
    }
    met: Counter[str] = Counter()
    given: Counter[tuple[str, Split]] = Counter()
    dealt: dict[str, Split] = {}
    everything = ""  # what all units have beside their own label
    for unit in sorted(order, key=lambda one: label.get(one, "")):
        groups = (everything, f"label {label.get(unit, '')}")
        for group in groups:
            met[group] += weight[unit]

        def lag(split: Split, groups: tuple[str, ...] = groups) -> float:
            return sum(share[split] * met[group] - given[group, split] for group in groups)

        split = max(share, key=lag)
        dealt[unit] = split
        for group in groups:
            given[group, split] += weight[unit]
    for split in ("test", "validation"):
        rest = [unit for unit in order if dealt[unit] == "train"]
        if split not in dealt.values() and len(rest) > 1:
            dealt[rest[0]] = split
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
