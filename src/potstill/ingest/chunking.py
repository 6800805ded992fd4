"""Cut a text into chunks that fit the teacher, at the borders the text itself offers.

In: a text, a token counter, sizes. Out: half-open character spans in order.
Paragraphs and tables are the pieces; semchunk cuts those that are too long (at line ends,
sentences, words). This file packs the pieces into overlapping windows and guarantees that
    every chunk holds at most `chunk_tokens` tokens, neighbours share at most `overlap_tokens`,
    and together the spans cover every character of the text that is not white space.
A heading goes with what it heads wherever the two fit into one chunk. Where sections are kept, a
chunk that would break one off in the middle ends before that section, if it is half full by then.
Knows no document, no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from potstill.core.extras import require
from potstill.ingest.cleaning import LIST_ITEM, SENTENCE_END

TokenCounter = Callable[[str], int]
Span = tuple[int, int]
REMEMBERED = 256  # texts of nearly a chunk each; what is asked again is asked soon
BLOCK = re.compile(r"\S(?:.*?\S)??(?=\s*\n\s*\n|\s*\Z)", re.DOTALL)
LONGEST_HEADING = 80
SMALLEST_PIECE = 16
MARKED_HEADING = re.compile(r"#{1,6}\s+\S[^\n]*$")
SECTION_FILL = 0.5
"""A chunk ends at a section's beginning only if it is so full; others would get too small."""


def chunk_spans(
    text: str,
    count: TokenCounter,
    chunk_tokens: int,
    overlap_tokens: int = 0,
    keep_sections: bool = True,
) -> list[Span]:
    """Spans of `text`, in order, none inside another. `overlap_tokens` < `chunk_tokens`.

    A single character that alone has more tokens than `chunk_tokens` is the one thing that can
    exceed it; with 32 tokens or more that does not happen with byte-level tokenizers.
    """
    remembered = lru_cache(REMEMBERED)(count)
    return _Packer(text, remembered, chunk_tokens, overlap_tokens, keep_sections).pack()


@dataclass
class _Packer:
    """Packs pieces `[start, end)` of `text`, by their positions in `pieces`."""

    text: str
    count: TokenCounter
    chunk_tokens: int
    overlap_tokens: int
    keep_sections: bool

    def __post_init__(self) -> None:
        self.pieces = list(self._cut())
        self.headings = [self._is_heading(span) for span in self.pieces]

    def pack(self) -> list[Span]:
        spans: list[Span] = []
        first = new = 0
        while first < len(self.pieces):
            last = self._fill(first)
            if self.keep_sections:
                last = self._before_section(first, last, new)
            last = self._without_headings(first, last)
            spans.append((self.pieces[first][0], self.pieces[last][1]))
            if last + 1 == len(self.pieces):
                break
            first, new = self._next(first, last), last + 1
        return spans

    def _cut(self) -> list[Span]:
        """The borders at which chunks may begin and end."""
        semchunk = require("semchunk", "documents", "Cutting documents into chunks")
        spare = self.chunk_tokens - self.overlap_tokens
        size = min(self.overlap_tokens, spare) or self.chunk_tokens
        # A small overlap must not shred the text; such neighbours then share less, or nothing.
        size = min(max(size, SMALLEST_PIECE), self.chunk_tokens)
        pieces: list[Span] = []
        for block in BLOCK.finditer(self.text):
            _, spans = semchunk.chunk(block[0], size, self.count, memoize=False, offsets=True)
            pieces += [(block.start() + start, block.start() + end) for start, end in spans]
        return pieces

    def _is_heading(self, span: Span) -> bool:
        """A short line of its own that is neither a sentence nor part of a list or table."""
        start, end = span
        words = self.text[start:end]
        if MARKED_HEADING.match(words):
            return True
        alone = (
            self.text[end : end + 2] == "\n\n" and self.text[max(0, start - 2) : start].isspace()
        )
        return (
            (alone or start == 0)
            and len(words) <= LONGEST_HEADING
            and "\n" not in words
            and "|" not in words
            and not SENTENCE_END.search(words)
            and (not LIST_ITEM.match(words) or words[0].isdigit())
        )

    def _fits(self, first: int, last: int) -> bool:
        return self._tokens(first, last) <= self.chunk_tokens

    def _tokens(self, first: int, last: int) -> int:
        return self.count(self.text[self.pieces[first][0] : self.pieces[last][1]])

    def _fill(self, first: int) -> int:
        """The last piece that still fits into a chunk that begins with `first`."""
        good, step = first, 1
        while good + step < len(self.pieces) and self._fits(first, good + step):
            good, step = good + step, 2 * step
        bad = min(good + step, len(self.pieces))
        while good + 1 < bad:
            middle = (good + bad) // 2
            if self._fits(first, middle):
                good = middle
            else:
                bad = middle
        return good

    def _before_section(self, first: int, last: int, new: int) -> int:
        """`last`, or the piece before the section that would be broken off.

        `new`: the first piece that no earlier chunk has; it stays in this one.
        """
        if last + 1 == len(self.pieces) or self.headings[last + 1]:
            return last
        begins = last
        while begins > first and not self.headings[begins]:
            begins -= 1
        while begins > first and self.headings[begins - 1]:
            begins -= 1
        if begins <= max(first, new):
            return last
        enough = self._tokens(first, begins - 1) >= SECTION_FILL * self.chunk_tokens
        moves = enough and self._fits(begins, last + 1)
        return begins - 1 if moves else last

    def _without_headings(self, first: int, last: int) -> int:
        """`last`, or the piece before the headings that would end the chunk."""
        kept = last
        while kept > first and self.headings[kept]:
            kept -= 1
        moves = kept < last and last + 1 < len(self.pieces) and not self.headings[kept]
        return kept if moves and self._fits(kept + 1, last + 1) else last

    def _next(self, first: int, last: int) -> int:
        """The earliest start that repeats no more than allowed and still takes in a new piece."""
        new = last + 1
        while self.headings[new] and new + 1 < len(self.pieces):
            new += 1  # a chunk that ended with headings would lose them again
        for start in range(first + 1, last + 1):
            if self._tokens(start, last) <= self.overlap_tokens and self._fits(start, new):
                return start
        return last + 1
