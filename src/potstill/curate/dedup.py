"""Finds rows that say what an earlier row said already, word for word or nearly.

In: the words of rows, in the order of their right to stay. Out: for each row, the earlier row it
repeats, if any. MinHash signatures in bands propose pairs (Broder, "On the resemblance and
containment of documents", 1997; Leskovec et al., "Mining of Massive Datasets", 3.4); the words
themselves decide, so a proposal is never believed by itself. Knows nothing of splits or reasons.

What is hashed are the letter triples of the telling words, so that a mistyped word still shares
most of its own. What is compared are the words, slips set right (`text.py`), and all figures must
be equal: "code H12" and "code H18" are two facts, however alike the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.core.extras import require
from potstill.curate.text import figures, likeness, mended, most_likeness, telling

PERMUTATIONS, BANDS = 128, 32  # bands of 4: a pair at Jaccard 0.65 is proposed with 0.998
SEED = 20_000_003  # of the hash functions; fixed, so that equal data gives equal results
BLOCK = 4096  # rows whose signatures are computed at once
LEAST_ESTIMATE = 0.35  # of the letter triples' Jaccard, below which words are not compared
CROWD = 64  # rows that share a band: more share a template, which says nothing of a pair
NEAREST = 8  # rows at a crowd's beginning, and before each of it, that are proposed all the same
PAIRS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Text:
    """What is compared of a row."""

    words: tuple[str, ...]
    """All of them, as `text.words` gives them."""
    family: str
    """Rows of one family vary each other on purpose: of them only equal ones are repeats."""


@dataclass(frozen=True)
class Repeat:
    """That a row repeats an earlier one."""

    of: int
    """Its place."""
    exact: bool
    similarity: float


def repeats(texts: Sequence[Text], threshold: float) -> list[Repeat | None]:
    """For each text, the first kept one that it equals, else the kept one that is most like it.

    A text is kept if it repeats none. threshold: least `text.likeness`; 1 finds equal ones only.
    Errors: MissingExtraError if rensa or numpy is not installed and threshold is below 1.
    """
    place: dict[tuple[str, ...], int] = {}
    distinct = []
    for number, text in enumerate(texts):
        if place.setdefault(text.words, number) == number:
            distinct.append(number)
    near = _near(texts, distinct, threshold) if threshold < 1 else {}
    found: list[Repeat | None] = []
    for number, text in enumerate(texts):
        first = place[text.words]
        if first == number:
            found.append(_best(near.get(number, ()), found))
        else:
            found.append(Repeat(_kept(first, found), True, 1.0))
    return found


def _kept(number: int, found: Sequence[Repeat | None]) -> int:
    """The row itself if it stays, else the one that it repeats."""
    repeat = found[number]
    return number if repeat is None else repeat.of


def _best(pairs: Sequence[tuple[int, float]], found: Sequence[Repeat | None]) -> Repeat | None:
    """The kept row of most similarity; of equals, the first."""
    kept = [(similarity, -other) for other, similarity in pairs if found[other] is None]
    if not kept:
        return None
    similarity, other = max(kept)
    return Repeat(-other, False, similarity)


def _near(
    texts: Sequence[Text], distinct: Sequence[int], threshold: float
) -> dict[int, list[tuple[int, float]]]:
    """Row -> (earlier row, similarity) of those that are alike."""
    seen: Counter[str] = Counter()
    content = {}
    for number in distinct:
        content[number] = telling(texts[number].words)
        seen.update(set(content[number]))
    numbers = {number: figures(texts[number].words) for number in distinct}
    found: dict[int, list[tuple[int, float]]] = {}
    for one, other in _proposed(list(content.values())):
        first, second = distinct[one], distinct[other]
        if numbers[first] != numbers[second] or texts[first].family == texts[second].family:
            continue
        similarity = alike(content[second], content[first], seen, threshold)
        if similarity >= threshold:
            found.setdefault(second, []).append((first, similarity))
    return found


def alike(
    one: Sequence[str], other: Sequence[str], seen: Mapping[str, int], threshold: float
) -> float:
    """Their likeness with slips set right; 0 where the lengths alone rule the threshold out."""
    if most_likeness(one, other) < threshold:
        return 0.0
    return likeness(mended(one, other, seen), other)


def _proposed(content: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of places whose signatures are alike, in the order of the later."""
    np: Any = require("numpy", "curate", "Finding near-duplicates")
    if len(content) < 2:
        return []
    signatures = _signatures(content)
    pairs = _pairs(signatures)
    kept = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        block = pairs[start : start + PAIRS_AT_ONCE]
        equal = (signatures[block[:, 0]] == signatures[block[:, 1]]).mean(axis=1)
        kept.append(block[equal >= LEAST_ESTIMATE])
    return [(one, other) for one, other in np.concatenate(kept).tolist()] if kept else []


def _signatures(content: Sequence[Sequence[str]]) -> Any:
    """MinHash signatures, one row a text: uint32 [texts, PERMUTATIONS]."""
    np: Any = require("numpy", "curate", "Finding near-duplicates")
    hasher = require("rensa", "curate", "Finding near-duplicates").RMinHash
    known: dict[str, list[int]] = {}
    result = np.empty((len(content), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(content), BLOCK):
        flat: list[int] = []
        ends = [0]
        for text in content[start : start + BLOCK]:
            for word in text:
                hashes = known.get(word)
                if hashes is None:
                    hashes = known[word] = hasher.hash_token_sets([triples(word)])[0]
                flat += hashes
            ends.append(len(flat))
        matrix = hasher.digest_matrix_from_flat_token_hashes(
            np.array(flat, dtype=np.uint64), np.array(ends, dtype=np.uint64), PERMUTATIONS, SEED
        )
        result[start : start + BLOCK] = matrix.to_rows()
    return result


def triples(word: str) -> list[str]:
    """The letter triples of a word with its borders."""
    framed = f"<{word}>"
    return [framed[place : place + 3] for place in range(max(1, len(framed) - 2))]


def _pairs(signatures: Any) -> Any:
    """Places that share a band, each pair once, sorted by the later one: int64 [pairs, 2]."""
    import numpy as np

    count = len(signatures)
    mix = np.random.default_rng(SEED).integers(1, 1 << 63, PERMUTATIONS, dtype=np.uint64) | 1
    width = PERMUTATIONS // BANDS
    codes = np.empty(0, dtype=np.int64)
    for band in range(BANDS):
        columns = slice(band * width, (band + 1) * width)
        keys = (signatures[:, columns].astype(np.uint64) * mix[columns]).sum(axis=1)
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        starts = np.concatenate([[0], borders])
        sizes = np.diff(np.concatenate([starts, [count]]))
        new = [codes]
        for step in range(1, int(min(sizes.max(), CROWD))):
            # The member `step` places before, of every group that is large enough for one.
            use = (sizes > step) & ((sizes <= CROWD) | (step <= NEAREST))
            later = _places(starts[use] + step, sizes[use] - step)
            new.append(order[later] * count + order[later - step])
        crowds = sizes > CROWD
        for start, size in zip(starts[crowds], sizes[crowds], strict=True):
            first = order[start : start + NEAREST]
            members = order[start + NEAREST : start + size]
            new.append((members[:, None] * count + first[None, :]).ravel())
        codes = np.unique(np.concatenate(new))
    return np.stack([codes % count, codes // count], axis=1)


def _places(starts: Any, sizes: Any) -> Any:
    """start, start + 1, ... of each run, one after the other."""
    import numpy as np

    total = int(sizes.sum())
    if total == 0:
        return np.empty(0, dtype=np.int64)
    offsets = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.arange(total) - offsets + np.repeat(starts, sizes)
