"""Finds rows that say what an earlier row said already, word for word or nearly.

In: rows in the order of their right to stay. Out: for each row, the earlier row it repeats, if any.
MinHash with locality-sensitive hashing proposes pairs (Broder, "On the resemblance and containment
of documents", 1997); the exact Jaccard similarity of their shingles decides, so a proposal is never
believed by itself. Knows nothing of splits or reasons.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from potstill.core.extras import require
from potstill.curate.filters import words
from potstill.records import Example

PERMUTATIONS = 128
BANDS = 32  # of 4 rows: a pair at Jaccard 0.7 is proposed with probability 0.9999
SEED = 20_000_003  # of the hash functions; fixed, so that equal data gives equal results


@dataclass(frozen=True)
class Repeat:
    """That a row repeats an earlier one."""

    of: str
    kind: Literal["exact_duplicate", "near_duplicate"]
    similarity: float


@dataclass
class Seen:
    """The rows that were kept so far. Ask with `repeat_of`, then `add` what stays."""

    threshold: float
    _texts: dict[tuple[str, ...], str] = field(default_factory=dict)
    _rows: list[tuple[str, frozenset[str], frozenset[str]]] = field(default_factory=list)
    _index: Any = None

    def repeat_of(self, example: Example) -> Repeat | None:
        """The kept row that this one repeats, or None."""
        content = _content(example)
        if content in self._texts:
            return Repeat(self._texts[content], "exact_duplicate", 1.0)
        mine, figures = _shingles(content), _figures(content)
        if self._index is None or not mine:
            return None
        best: Repeat | None = None
        for number in sorted(self._index.query(_sketch(mine))):
            name, theirs, other_figures = self._rows[number]
            if figures != other_figures:
                continue  # "code H12" and "code H18" are two facts, however alike the sentences
            similarity = len(mine & theirs) / len(mine | theirs)
            if similarity >= self.threshold and (best is None or similarity > best.similarity):
                best = Repeat(name, "near_duplicate", similarity)
        return best

    def add(self, example: Example) -> None:
        """Remember a row that stays."""
        content = _content(example)
        shingles = _shingles(content)
        self._texts.setdefault(content, example.id)
        if not shingles:
            return
        if self._index is None:
            rensa = require("rensa", "curate", "Finding near-duplicates")
            self._index = rensa.RMinHashLSH(0.5, PERMUTATIONS, BANDS)
        self._index.insert(len(self._rows), _sketch(shingles))
        self._rows.append((example.id, shingles, _figures(content)))


def _content(example: Example) -> tuple[str, ...]:
    """Question and answer as words, in one Unicode form: what an exact duplicate shares."""
    answer = example.answers[0] if example.answers else ""
    return tuple(words(unicodedata.normalize("NFKC", f"{example.question}\n{answer}")))


def _figures(content: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for word in content if any(letter.isdigit() for letter in word))


def _shingles(content: tuple[str, ...]) -> frozenset[str]:
    """Single words and word pairs: short texts have too few longer runs to compare."""
    pairs = (f"{first} {second}" for first, second in pairwise(content))
    return frozenset([*content, *pairs])


def _sketch(shingles: frozenset[str]) -> Any:
    rensa = require("rensa", "curate", "Finding near-duplicates")
    sketch = rensa.RMinHash(PERMUTATIONS, SEED)
    sketch.update(sorted(shingles))
    return sketch
