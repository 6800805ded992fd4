"""Finds rows that say what an earlier row said already, word for word or nearly.

In: the words of rows, in the order of their right to stay. Out: for each row, the earlier row it
repeats, if any. MinHash signatures in bands propose pairs (Broder, "On the resemblance and
containment of documents", 1997; Leskovec et al., "Mining of Massive Datasets", 3.4); the words
themselves decide, so a proposal is never believed by itself. Knows nothing of splits or reasons.

What is hashed are pairs of each row's rarest words. Rows that share a template ("What is the weight
of …?") then share little, while two rows that differ in a word and two slips still share a third of
their pairs. What is compared are the words, slips set right (`text.py`), and all figures must be
equal: "code H12" and "code H18" are two facts, however alike the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from potstill.core.extras import require
from potstill.curate.text import (
    figures,
    is_slip,
    likeness,
    mended,
    most_likeness,
    telling,
    without_small_slips,
)

PERMUTATIONS, BANDS = 128, 64  # bands of 2: a pair at Jaccard 0.25 is proposed with 0.984
SEED = 20_000_003  # of the hash functions; fixed, so that equal data gives equal results
RAREST = 8  # words of a row whose pairs are hashed
FEW_WORDS = 6  # rows with fewer have too few pairs: their words count by themselves, too
COMPARED = 12  # words of a row that are compared before all are: its rarest
ROUGHLY = 0.9  # of the threshold: words that are there twice are counted once at first
BLOCK = 4096  # rows whose signatures are computed at once
CROWD = 32  # rows that share a band: more share a template, which says nothing of a pair
NEAREST = 4  # rows at a crowd's beginning, and before each of it, that are proposed all the same
AT_ONCE = 16  # bands whose pairs are in memory at once
PAIRS_AT_ONCE = 1 << 18
MIX, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1  # spreads pairs over all numbers of 64 bits


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
    for one, other in _proposed(list(content.values()), list(numbers.values()), seen, threshold):
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
    """Their likeness with slips set right; 0 where a rough count rules the threshold out."""
    if most_likeness(one, other) < threshold:
        return 0.0

    def slip(word: str, like: str) -> bool:
        return is_slip(word, like, seen)

    mine, theirs = set(one), set(other)
    lacking = theirs - mine
    shared = len(mine & theirs) + sum(any(slip(word, like) for like in lacking)
                                      for word in mine - theirs)  # fmt: skip
    droppable = abs(len(one) - len(other))  # small words, mistyped
    most = shared / max(1, len(mine) + len(theirs) - droppable - shared)
    if most < ROUGHLY * threshold:
        return 0.0
    right = mended(one, other, slip)
    right, other = without_small_slips(right, other), without_small_slips(other, right)
    return likeness(right, other)


def _proposed(
    content: Sequence[Sequence[str]],
    numbers: Sequence[frozenset[str]],
    seen: Mapping[str, int],
    threshold: float,
) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of places that may be alike, in the order of the later."""
    np: Any = require("numpy", "curate", "Finding near-duplicates")
    if len(content) < 2:
        return []
    count = len(content)
    signatures = _signatures(content, seen)
    lengths = np.array([len(text) for text in content])
    rarest = _rarest(content, seen)
    same = np.array([hash(one) for one in numbers])  # equal for equal sets: others are left out
    kept = np.empty(0, dtype=np.int64)
    for codes in _pairs(signatures):
        codes = codes[same[codes % count] == same[codes // count]]
        for start in range(0, len(codes), PAIRS_AT_ONCE):
            some = codes[start : start + PAIRS_AT_ONCE]
            pairs = np.stack([some % count, some // count], axis=1)
            some = some[_may_be_alike(rarest, lengths, pairs, threshold)]
            kept = np.concatenate([kept, some])
    return [(code % count, code // count) for code in np.unique(kept).tolist()]


def _rarest(content: Sequence[Sequence[str]], seen: Mapping[str, int]) -> Any:
    """Codes of each text's rarest words: int32 [texts, COMPARED]; -1 where it has fewer."""
    import numpy as np

    codes = {word: place for place, word in enumerate(seen)}
    result = np.full((len(content), COMPARED), -1, dtype=np.int32)
    for place, text in enumerate(content):
        own = sorted(set(text), key=lambda word: (seen[word], word))[:COMPARED]
        result[place, : len(own)] = [codes[word] for word in own]
    return result


def _may_be_alike(rarest: Any, lengths: Any, pairs: Any, threshold: float) -> Any:
    """Whether two texts share words enough, some of them misspelt, to reach the threshold.

    Two texts of n and m words at Jaccard t share t / (1 + t) * (n + m) of them.
    """
    import numpy as np

    one, other = rarest[pairs[:, 0]], rarest[pairs[:, 1]]
    shared = np.zeros(len(pairs), dtype=np.int16)
    for column in range(COMPARED):
        mine = one[:, column, None]
        shared += ((mine == other) & (mine >= 0)).any(axis=1)
    n, m = lengths[pairs[:, 0]], lengths[pairs[:, 1]]
    missing = np.maximum(n, m) - threshold / (1 + threshold) * (n + m)
    slips = np.maximum(2, np.minimum(n, m) / 4)
    known = np.minimum((one >= 0).sum(axis=1), (other >= 0).sum(axis=1))
    return (shared >= known - missing - slips) & (np.minimum(n, m) >= threshold * np.maximum(n, m))


def _signatures(content: Sequence[Sequence[str]], seen: Mapping[str, int]) -> Any:
    """MinHash signatures, one row a text: uint32 [texts, PERMUTATIONS]."""
    np: Any = require("numpy", "curate", "Finding near-duplicates")
    hasher = require("rensa", "curate", "Finding near-duplicates").RMinHash
    vocabulary = list(seen)
    codes = dict(zip(vocabulary, hasher.hash_token_sets([vocabulary])[0], strict=True))
    result = np.empty((len(content), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(content), BLOCK):
        flat: list[int] = []
        ends = [0]
        for text in content[start : start + BLOCK]:
            flat += _tokens(text, seen, codes)
            ends.append(len(flat))
        matrix = hasher.digest_matrix_from_flat_token_hashes(
            np.array(flat, dtype=np.uint64), np.array(ends, dtype=np.uint64), PERMUTATIONS, SEED
        )
        result[start : start + BLOCK] = matrix.to_rows()
    return result


def _tokens(text: Sequence[str], seen: Mapping[str, int], codes: Mapping[str, int]) -> list[int]:
    """What of a text is hashed: the pairs of its rarest words, each a number of 64 bits."""
    rarest = sorted(set(text), key=lambda word: (seen[word], word))[:RAREST]
    own = sorted(codes[word] for word in rarest)
    pairs = [(one * MIX ^ other) & MASK for one, other in combinations(own, 2)]
    return pairs + own if len(own) < FEW_WORDS else pairs


def _pairs(signatures: Any) -> Iterator[Any]:
    """Places that share a band, some bands at a time, as sorted codes: later * count + earlier."""
    import numpy as np

    mix = np.random.default_rng(SEED).integers(1, 1 << 63, PERMUTATIONS, dtype=np.uint64) | 1
    width = PERMUTATIONS // BANDS
    for first in range(0, BANDS, AT_ONCE):
        found: list[Any] = [np.empty(0, dtype=np.int64)]
        for band in range(first, min(BANDS, first + AT_ONCE)):
            columns = slice(band * width, (band + 1) * width)
            keys = (signatures[:, columns].astype(np.uint64) * mix[columns]).sum(axis=1)
            order = np.argsort(keys, kind="stable")
            found += _in_band(order, np.flatnonzero(np.diff(keys[order])) + 1)
        yield np.unique(np.concatenate(found))


def _in_band(order: Any, borders: Any) -> list[Any]:
    """Codes (later * count + earlier) of the pairs in one band's groups, which begin at 0 and at
    `borders` of `order`."""
    import numpy as np

    count = len(order)
    starts = np.concatenate([[0], borders])
    sizes = np.diff(np.concatenate([starts, [count]]))
    found = []
    for step in range(1, int(min(sizes.max(), CROWD))):
        # The member `step` places before, of every group that is large enough for one.
        use = (sizes > step) & ((sizes <= CROWD) | (step <= NEAREST))
        later = _places(starts[use] + step, sizes[use] - step)
        found.append(order[later] * count + order[later - step])
    crowds = sizes > CROWD
    for start, size in zip(starts[crowds], sizes[crowds], strict=True):
        first = order[start : start + NEAREST]
        members = order[start + NEAREST : start + size]
        found.append((members[:, None] * count + first[None, :]).ravel())
    return found


def _places(starts: Any, sizes: Any) -> Any:
    """start, start + 1, ... of each run, one after the other."""
    import numpy as np

    total = int(sizes.sum())
    if total == 0:
        return np.empty(0, dtype=np.int64)
    offsets = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.arange(total) - offsets + np.repeat(starts, sizes)
