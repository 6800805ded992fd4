"""Finds the passages of a run's documents that a question is about.

In: chunks. Out: the best chunks for a question, by BM25 over SQLite's full-text index
(Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009; FTS5's `bm25`).
Knows nothing of models: the same words must stand in both, in any inflection (Porter stemming).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from potstill.records import Chunk

WORD = re.compile(r"\w+", re.UNICODE)
# Words that stand in nearly every question; as search terms they only add noise.
STOP = frozenset(
    """a an and are as at be by can do does for from has have how in is it its of on or that
    the this to was what when where which who why will with you""".split()
)


class PassageIndex:
    """A full-text index in memory; a handbook's chunks take milliseconds to add."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = list(chunks)
        self._database = sqlite3.connect(":memory:")
        self._database.execute(
            "CREATE VIRTUAL TABLE passage USING fts5(text, tokenize='porter unicode61')"
        )
        self._database.executemany(
            "INSERT INTO passage(rowid, text) VALUES (?, ?)",
            [(number, chunk.text) for number, chunk in enumerate(self._chunks)],
        )

    def __len__(self) -> int:
        return len(self._chunks)

    def search(self, question: str, limit: int = 1) -> list[Chunk]:
        """The best chunks first; an empty list if no word of the question stands anywhere."""
        words = {word.lower() for word in WORD.findall(question)}
        terms = sorted(words - STOP) or sorted(words)
        if not terms:
            return []
        query = " OR ".join(f'"{term}"' for term in terms)
        found = self._database.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage), rowid LIMIT ?",
            (query, limit),
        )
        return [self._chunks[row[0]] for row in found]

    def close(self) -> None:
        """Free the index."""
        self._database.close()
