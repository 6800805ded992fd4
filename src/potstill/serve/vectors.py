"""Passages and questions as vectors, and the nearest ones.

In: texts. Out: unit vectors of an encoder (`models/encoder.py`); the numbers of the nearest by
cosine. Up to `EXACT` passages all are compared: one matrix product, a few milliseconds for 10,000.
Beyond, the signs of the numbers, one bit each, choose candidates, and only these are compared, so
that memory holds a thirty-second of the vectors and the disk the rest (decision 20).
Vectors are kept on disk by the encoder's and the texts' digests. Knows nothing of passages.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.files import write_atomic
from potstill.models.encoder import Encoder, encoder_digest

KEPT = 16  # fewer texts are computed again; that is as fast as reading them
BLOCK = 8192  # texts whose vectors share a file: what a kill in a long start can cost
EXACT = 100_000  # passages that are all compared
CANDIDATES = 20  # of so many times the wanted ones the exact cosine is taken


@dataclass(frozen=True)
class Block:
    """Vectors of passages that follow each other. rows: float32 [n, width], of length 1, in memory
    or mapped from a file; signs: uint64 [n, words], a bit a number; file: where they are kept."""

    rows: Any
    signs: Any
    file: Path | None = None


class Meanings:
    """An encoder and the vectors of all passages. folder: where vectors are kept; None: nowhere.

    Errors: ModelError for the encoder, StoreError if the disk refuses the vectors.
    """

    def __init__(self, encoder: str, folder: Path | None) -> None:
        self._encoder = Encoder(encoder)
        self._digest = encoder_digest(encoder)
        self._folder = folder
        self._one_at_a_time = threading.Lock()
        self._blocks: list[Block] = []
        self._live = np.zeros(0, dtype=bool)

    def vectors(self, texts: Sequence[str]) -> Any:
        """float32 [texts, width], each of length 1; kept nowhere."""
        with self._one_at_a_time:
            return self._encoder.vectors(texts, lambda done: None)

    def blocks(self, texts: Sequence[str]) -> list[Block]:
        """The vectors of passages, from the disk where they were computed before; for `add`."""
        starts = range(0, len(texts), BLOCK)
        return [self._block(texts[start : start + BLOCK]) for start in starts]

    def add(self, blocks: Sequence[Block]) -> None:
        """Further passages, numbered on from those before."""
        for block in blocks:
            last = self._blocks[-1] if self._blocks else None
            if last is not None and last.file is None and len(last.rows) < BLOCK and not block.file:
                # Documents of a few passages each must not become thousands of tiny blocks.
                rows = np.concatenate([last.rows, block.rows])
                self._blocks[-1] = Block(rows, np.concatenate([last.signs, block.signs]))
            else:
                self._blocks.append(block)
            self._live = np.concatenate([self._live, np.ones(len(block.rows), dtype=bool)])

    def remove(self, numbers: Sequence[int]) -> None:
        """Passages that are near to nothing from now on. Files with their vectors go too, as they
        would tell of what was removed, and so do files that no passage here needs; the rest of a
        file is computed again at the next start.
        """
        self._live[list(numbers)] = False
        if self._folder is None or not numbers:
            return
        kept, first = set(), 0
        for block in self._blocks:
            last = first + len(block.rows)
            if not any(first <= number < last for number in numbers):
                kept.add(block.file)
            first = last
        for file in self._folder.glob("*.npy"):
            if file not in kept:
                file.unlink(missing_ok=True)

    def nearest(self, vector: Any, limit: int) -> list[int]:
        """Numbers of the passages with the largest cosine to `vector` [1, width], best first. Of
        more than `EXACT` passages those are compared whose signs differ least from the question's.
        """
        numbers = np.flatnonzero(self._live)
        if len(self._live) > EXACT:
            numbers = self._candidates(vector, numbers, limit * CANDIDATES)
        if not len(numbers):
            return []
        likeness = self._likeness(vector[0], numbers)
        order = np.lexsort((numbers, -likeness))
        return [int(number) for number in numbers[order[:limit]]]

    def _candidates(self, vector: Any, numbers: Any, wanted: int) -> Any:
        asked = signs_of(vector)
        apart = np.concatenate(
            [
                np.bitwise_count(block.signs ^ asked).sum(1, dtype=np.uint16)
                for block in self._blocks
            ]
        )[numbers]
        if len(numbers) <= wanted:
            return numbers
        return np.sort(numbers[np.argpartition(apart, wanted)[:wanted]])

    def _likeness(self, vector: Any, numbers: Any) -> Any:
        """Cosines of the passages with those ascending numbers."""
        found, first = [], 0
        for block in self._blocks:
            last = first + len(block.rows)
            inside = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, last)]
            whole = len(inside) == len(block.rows)
            found.append((block.rows if whole else block.rows[inside - first]) @ vector)
            first = last
        return np.concatenate(found)

    def _block(self, texts: Sequence[str]) -> Block:
        if self._folder is None or len(texts) < KEPT:
            rows = self.vectors(texts)
            return Block(rows, signs_of(rows))
        digest = hashlib.sha256(self._digest.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        file = self._folder / f"{digest.hexdigest()[:32]}.npy"
        rows = _mapped(file, len(texts))
        if rows is None:
            made = BytesIO()
            np.save(made, self.vectors(texts))
            write_atomic(file, made.getvalue())
            rows = _mapped(file, len(texts))
        return Block(rows, signs_of(rows), file)


def signs_of(rows: Any) -> Any:
    """uint64 [n, words]: which numbers of each row are above zero, filled up with zeros."""
    bits = np.packbits(rows > 0, axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


def _mapped(file: Path, count: int) -> Any:
    """The file's rows; None if it was never written, or is damaged."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and found.shape[0] == count else None
