"""Finds rows that mean what an earlier row means, in whatever words.

In: texts, an encoder. Out: for each text, the earlier kept one that is most like it in meaning, if
it is like enough. All pairs are compared, a block at a time, so none is missed and memory stays
flat. Knows nothing of splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.core.stage import Context
from potstill.curate.curation import Similar
from potstill.curate.dedup import Repeat
from potstill.curate.text import figures, words
from potstill.models.encoder import Encoder

BLOCK = 1024  # rows compared with all others at once: 400 MB for 100,000 rows


def finder(source: str, context: Context) -> Similar:
    """What `curation.curate` asks for repeats in meaning. Errors: ModelError for the encoder."""
    encoder = Encoder(source)

    def similar(
        texts: Sequence[str], threshold: float, families: Sequence[str]
    ) -> list[Repeat | None]:
        def on_batch(done: int) -> None:
            context.events.progress(done, len(texts), "rows", step="meanings")

        vectors = encoder.vectors(texts, on_batch)
        return repeats_of(vectors, threshold, texts, families)

    return similar


def repeats_of(
    vectors: Any, threshold: float, texts: Sequence[str], families: Sequence[str]
) -> list[Repeat | None]:
    """vectors: [texts, width], each of length 1. Texts with other figures are other facts, and
    those of one family vary each other on purpose."""
    numbers = [figures(words(text)) for text in texts]
    found: list[Repeat | None] = []
    for start in range(0, len(texts), BLOCK):
        block = vectors[start : start + BLOCK]
        likeness = block @ vectors[: start + len(block)].T
        rows, columns = np.nonzero(likeness >= threshold)
        earlier = columns < rows + start
        candidates: dict[int, list[int]] = {}
        for row, column in zip(rows[earlier].tolist(), columns[earlier].tolist(), strict=True):
            candidates.setdefault(row, []).append(column)
        for row in range(len(block)):
            place = start + row
            best: Repeat | None = None
            for other in candidates.get(row, ()):
                if (
                    found[other] is None
                    and numbers[place] == numbers[other]
                    and families[place] != families[other]
                    and (best is None or likeness[row, other] > best.similarity)
                ):
                    best = Repeat(other, False, float(likeness[row, other]))
            found.append(best)
    return found
