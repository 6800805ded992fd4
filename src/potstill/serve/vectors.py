"""Passages and questions as vectors, and the nearest ones, exactly.

In: texts. Out: unit vectors of an encoder (`models/encoder.py`); the numbers of the nearest by
cosine, among all: one matrix product, a few milliseconds for 10,000 passages.
Vectors are kept on disk by the encoder's and the texts' digests. Knows nothing of passages.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.files import write_atomic
from potstill.models.encoder import Encoder, encoder_digest

KEPT = 16  # fewer texts are computed again; that is as fast as reading them


class Meanings:
    """An encoder and the vectors of all passages. folder: where vectors are kept; None: nowhere.

    Errors: ModelError for the encoder, StoreError if the disk refuses the vectors.
    """

    def __init__(self, encoder: str, folder: Path | None) -> None:
        self._encoder = Encoder(encoder)
        self._digest = encoder_digest(encoder)
        self._folder = folder
        self._one_at_a_time = threading.Lock()
        self._rows: Any = None

    def vectors(self, texts: Sequence[str]) -> Any:
        """float32 [texts, width], each of length 1."""
        if self._folder is None or len(texts) < KEPT:
            return self._computed(texts)
        digest = hashlib.sha256(self._digest.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        file = self._folder / f"{digest.hexdigest()[:32]}.npy"
        try:
            found = np.load(file, allow_pickle=False)
            if found.shape[0] == len(texts):
                return found
        except (OSError, ValueError):
            pass  # never written, or damaged: it is computed
        made = self._computed(texts)
        content = BytesIO()
        np.save(content, made)
        write_atomic(file, content.getvalue())
        return made

    def add(self, rows: Any) -> None:
        """Append vectors of further passages."""
        if len(rows):
            self._rows = rows if self._rows is None else np.concatenate([self._rows, rows])

    def remove(self, numbers: Sequence[int]) -> None:
        """Passages that are near to nothing from now on. Vectors on the disk are forgotten: a file
        of them would tell of what was removed; they are computed again at the next start."""
        if numbers:
            self._rows[list(numbers)] = np.nan
        if self._folder is not None:
            for file in self._folder.glob("*.npy"):
                file.unlink(missing_ok=True)

    def nearest(self, vector: Any, limit: int) -> list[int]:
        """Numbers of the passages with the largest cosine to `vector` [1, width], best first."""
        if self._rows is None:
            return []
        likeness = self._rows @ vector[0]
        order = np.lexsort((np.arange(len(likeness)), -likeness))  # what is not a number is last
        return [int(number) for number in order[:limit] if not np.isnan(likeness[number])]

    def _computed(self, texts: Sequence[str]) -> Any:
        with self._one_at_a_time:
            return self._encoder.vectors(texts, lambda done: None)
