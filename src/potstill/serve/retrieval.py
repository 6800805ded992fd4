"""Finds the passages of a run's documents that a question is about.

In: chunks. Out: the best chunks for a question, by BM25 over SQLite's full-text index
(Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009; FTS5's `bm25`), and with an
encoder also by the cosine of meanings; the two orders become one by reciprocal rank fusion
(Cormack, Clarke and Buettcher, SIGIR 2009). Without an encoder the same words must stand in both,
in any inflection (Porter stemming). Knows nothing of answers.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from potstill.records import Chunk

WORD = re.compile(r"\w+", re.UNICODE)
# Words that stand in nearly every question; as search terms they only add noise.
STOP = frozenset(
    """a an and are as at be by can do does for from has have how in is it its of on or that
    the this to was what when where which who why will with you""".split()
)
FUSED = 50  # of each order, the first so many are looked at
RANK_OFFSET = 60  # the paper's k: how much the very first ranks count more than the next
LONGEST_QUESTION = 2000  # characters that are searched for
TERMS = 64


class PassageIndex:
    """A full-text index in memory; a handbook's chunks take milliseconds to add.

    encoder: a reference of an encoder for searching by meaning. vectors: the folder where its
    vectors are kept, so that a second start does not compute them again. May be used by several
    threads. Errors: ModelError for the encoder.
    """

    def __init__(
        self, chunks: Iterable[Chunk], encoder: str | None = None, vectors: Path | None = None
    ) -> None:
        self._chunks: list[Chunk | None] = []  # None: removed; a number is never given twice
        self._removed = 0
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        weakref.finalize(self, self._database.close)  # also if what follows fails
        self._database.execute(
            "CREATE VIRTUAL TABLE passage USING fts5(text, tokenize='porter unicode61')"
        )
        self._meanings = None
        if encoder is not None:
            from potstill.serve.vectors import Meanings  # brings torch along

            self._meanings = Meanings(encoder, vectors)
        self.add(chunks)

    def __len__(self) -> int:
        return len(self._chunks) - self._removed

    def add(self, chunks: Iterable[Chunk]) -> range:
        """Make more passages findable; returns their numbers, for `remove`."""
        new = list(chunks)
        blocks = self._meanings.blocks([one.text for one in new]) if self._meanings else []
        with self._lock:
            first = len(self._chunks)
            self._database.executemany(
                "INSERT INTO passage(rowid, text) VALUES (?, ?)",
                [(first + number, chunk.text) for number, chunk in enumerate(new)],
            )
            self._chunks += new
            if self._meanings is not None:
                self._meanings.add(blocks)
        return range(first, first + len(new))

    def remove(self, numbers: Sequence[int]) -> None:
        """Passages that are found no more, from the next search on."""
        with self._lock:
            live = [one for one in numbers if self._chunks[one] is not None]
            self._database.executemany(
                "DELETE FROM passage WHERE rowid = ?", [(one,) for one in live]
            )
            for one in live:
                self._chunks[one] = None
            self._removed += len(live)
            if self._meanings is not None:
                self._meanings.remove(live)

    def search(self, question: str, limit: int = 1) -> list[Chunk]:
        """The best chunks first. By words alone: an empty list if no word of the question stands
        anywhere."""
        asked = question[:LONGEST_QUESTION]
        if self._meanings is None:
            with self._lock:
                return self._live(self._by_words(asked, limit))
        vector = self._meanings.vectors([asked])
        with self._lock:
            orders = self._by_words(asked, FUSED), self._meanings.nearest(vector, FUSED)
            return self._live(fused(orders)[:limit])

    def _live(self, numbers: Iterable[int]) -> list[Chunk]:
        found = (self._chunks[number] for number in numbers)
        return [one for one in found if one is not None]

    def vectors(self, texts: Sequence[str]) -> Any:
        """The encoder's unit vectors, float32 [texts, width]. Only with an encoder."""
        assert self._meanings is not None
        return self._meanings.vectors(texts)

    def _by_words(self, question: str, limit: int) -> list[int]:
        words = {word.lower() for word in WORD.findall(question)}
        terms = (sorted(words - STOP) or sorted(words))[:TERMS]
        if not terms:
            return []
        query = " OR ".join(f'"{term}"' for term in terms)
        found = self._database.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage), rowid LIMIT ?",
            (query, limit),
        )
        return [row[0] for row in found]

    def close(self) -> None:
        """Free the index."""
        self._database.close()


def fused(orders: Sequence[Sequence[int]]) -> list[int]:
    """One order of several: by the sum of 1 / (60 + rank), ranks from 1; ties by number."""
    scores: dict[int, float] = {}
    for order in orders:
        for rank, number in enumerate(order, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))
