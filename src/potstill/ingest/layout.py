"""From fragments with places to text in reading order: columns, rows, tables, paragraphs.

In: `PagePicture`s, from a PDF's text layer or from OCR. Out: `PageText`s; lines that recur at the
pages' top or bottom (running headers, footers, page numbers) are gone.
Knows only geometry: no PDF, no OCR, no language.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from potstill.ingest.cleaning import LIST_ITEM, SENTENCE_END, join_lines, one_line, vocabulary
from potstill.ingest.content import Fragment, PagePicture, PageText

EDGE = 0.14  # part of the page's height in which running lines are looked for
OUTER_ROWS = 2
RUN = 3  # pages, of any six in a row, on which a running line must recur
COLUMN_LINES = 5
GUTTER = 8.0
ROMAN = re.compile(r"[ivxlcdm]+", re.IGNORECASE)
DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class Row:
    """Fragments that stand on one line, from left to right."""

    fragments: list[Fragment]

    @property
    def text(self) -> str:
        return " ".join(fragment.text for fragment in self.fragments)

    @property
    def left(self) -> float:
        return self.fragments[0].left

    @property
    def right(self) -> float:
        return max(fragment.right for fragment in self.fragments)

    @property
    def middle(self) -> float:
        return self.fragments[0].middle

    @property
    def height(self) -> float:
        return max(fragment.height for fragment in self.fragments)


def rows_of(fragments: Iterable[Fragment]) -> list[Row]:
    """Fragments gathered into lines, top to bottom, each left to right."""
    rows: list[Row] = []
    for fragment in sorted(fragments, key=lambda one: (one.middle, one.left)):
        first = rows[-1].fragments[0] if rows else None
        if first and fragment.middle - first.middle < 0.5 * min(first.height, fragment.height):
            rows[-1].fragments.append(fragment)
        else:
            rows.append(Row([fragment]))
    for row in rows:
        row.fragments.sort(key=lambda one: one.left)
    return rows


def page_texts(pictures: Sequence[PagePicture]) -> tuple[list[PageText], set[str]]:
    """All pages of a document as text blocks, and the document's vocabulary."""
    for picture in pictures:
        picture.fragments = _cleaned(picture.fragments)
        picture.sideways = _cleaned(picture.sideways)
    drop_running_lines(pictures)
    ordered = [
        [rows_of(region) for region in (*reading_order(picture.fragments), picture.sideways)]
        for picture in pictures
    ]
    words = vocabulary(row.text for page in ordered for region in page for row in region)
    texts = []
    for picture, regions in zip(pictures, ordered, strict=True):
        blocks = [block for rows in regions for block in blocks_of(rows, words, picture.method)]
        texts.append(PageText(picture.number, blocks, picture.method))
    return texts, words


def _cleaned(fragments: list[Fragment]) -> list[Fragment]:
    for fragment in fragments:
        fragment.text = one_line(fragment.text)
    return [fragment for fragment in fragments if fragment.text]


# --- running headers and footers -----------------------------------------------------------------


def drop_running_lines(pictures: Sequence[PagePicture]) -> None:
    """Take out what recurs on the outermost lines of neighbouring pages, in place."""
    seen: dict[tuple[str, str], list[tuple[int, Fragment]]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        rows = rows_of(picture.fragments)
        edge = picture.height * EDGE
        top = [row for row in rows[:OUTER_ROWS] if row.middle < edge]
        bottom = [row for row in rows[-OUTER_ROWS:] if row.middle > picture.height - edge]
        for place, outer in (("top", top), ("bottom", bottom)):
            for row in outer:
                for fragment in row.fragments:
                    key = (place, signature(fragment.text, index))
                    seen[key].append((index, fragment))
    gone: dict[int, set[int]] = defaultdict(set)
    for group in seen.values():
        usual = median(fragment.height for _, fragment in group)
        # A title page often says in large letters what the other pages' header says in small.
        found = [one for one in group if one[1].height < 1.4 * usual]
        if recurs(sorted({index for index, _ in found}), len(pictures)):
            for index, fragment in found:
                gone[index].add(id(fragment))
    for index, picture in enumerate(pictures):
        picture.fragments = [
            fragment for fragment in picture.fragments if id(fragment) not in gone[index]
        ]


def signature(text: str, index: int) -> str:
    """What stays the same of a running line from page to page.

    A bare number counts only as far as it grows with the pages; a table's last row does not.
    """
    if ROMAN.fullmatch(text):
        return "#roman"
    if not any(character.isalpha() for character in text):
        numbers = DIGITS.findall(text)
        offset = str(int(numbers[0][:9]) - index) if numbers else ""
        return f"{DIGITS.sub('#', text)} {offset}"
    return DIGITS.sub("#", text.casefold())


def recurs(pages: Sequence[int], of: int) -> bool:
    """Whether a line on these pages is a running line: on three of any six, or on both of two."""
    if of <= RUN:
        return len(pages) >= 2
    return any(pages[at + RUN - 1] - pages[at] < 2 * RUN for at in range(len(pages) - RUN + 1))


# --- columns --------------------------------------------------------------------------------------


def reading_order(fragments: list[Fragment]) -> list[list[Fragment]]:
    """The page's regions in reading order: columns of prose one after the other, else one region.

    A gutter is a vertical strip with prose on both sides; fragments that cross it (titles, wide
    figures) part the page into bands. A table's columns are not prose: their cells are short.
    """
    if len(fragments) < 2 * COLUMN_LINES:
        return [fragments] if fragments else []
    gutter = _gutter(fragments)
    if gutter is None:
        return [fragments]
    regions: list[list[Fragment]] = []
    left: list[Fragment] = []
    right: list[Fragment] = []
    wide: list[Fragment] = []

    def close() -> None:
        for side in (left, right):
            regions.extend(reading_order(list(side)))
            side.clear()

    for fragment in sorted(fragments, key=lambda one: (one.middle, one.left)):
        if fragment.left < gutter < fragment.right:
            close()
            wide.append(fragment)
            continue
        if wide:
            regions.append(list(wide))
            wide.clear()
        (left if fragment.right <= gutter else right).append(fragment)
    close()
    if wide:
        regions.append(wide)
    return regions


def _gutter(fragments: list[Fragment]) -> float | None:
    """The middle of the best gutter, or None."""
    start = min(one.left for one in fragments)
    width = max(one.right for one in fragments) - start
    best: tuple[int, float] | None = None
    for step in range(20, 81, 2):
        x = start + width * step / 100
        near = [
            one for one in fragments if one.left < x + GUTTER / 2 and one.right > x - GUTTER / 2
        ]
        left = [one for one in fragments if one.right <= x - GUTTER / 2]
        right = [one for one in fragments if one.left >= x + GUTTER / 2]
        if len(near) > 0.2 * len(fragments) or not (_prose(left) and _prose(right)):
            continue
        if best is None or len(near) < best[0]:
            best = (len(near), x)
    return best[1] if best else None


def _prose(side: list[Fragment]) -> bool:
    """Whether most lines fill the side's width, as wrapped prose does."""
    if len(side) < COLUMN_LINES:
        return False
    width = max(one.right for one in side) - min(one.left for one in side)
    full = [one for one in side if one.right - one.left > 0.75 * width and len(one.text) >= 20]
    return len(full) > 0.6 * len(side)


# --- blocks ---------------------------------------------------------------------------------------


def blocks_of(rows: list[Row], words: set[str], method: str) -> list[str]:
    """A region's tables (`cell | cell`, one row a line) and paragraphs (one line each)."""
    blocks: list[str] = []
    prose: list[Row] = []
    pitch = _pitch(rows)
    at = 0
    while at < len(rows):
        end = _table_end(rows, at, pitch)
        if end == at:
            prose.append(rows[at])
            at += 1
            continue
        blocks += _paragraphs(prose, words, pitch, method)
        prose = []
        blocks.append(_table_text(rows[at:end], words))
        at = end
    return blocks + _paragraphs(prose, words, pitch, method)


def _pitch(rows: list[Row]) -> float:
    """The usual distance from line to line."""
    steps = [
        below.middle - above.middle
        for above, below in pairwise(rows)
        if below.middle - above.middle < 3 * above.height
    ]
    return median(steps) if steps else 0.0


def _table_end(rows: list[Row], start: int, pitch: float) -> int:
    """One past the last row of a table that begins at `start`; `start` where none does."""
    if len(rows[start].fragments) < 2:
        return start
    end = start + 1
    known = list(rows[start].fragments)
    full_rows = 1
    while end < len(rows):
        row, step = rows[end], rows[end].middle - rows[end - 1].middle
        aligned = sum(any(_aligned(one, other) for other in known) for one in row.fragments)
        # A cell that goes on below stands close under its row, and not in the first column.
        goes_on = step < 1.6 * row.height and row.left > rows[start].left + row.height
        if step > 3.5 * max(row.height, 1.0):
            break
        if len(row.fragments) >= 2 and aligned >= 2:
            full_rows += 1
            known = row.fragments if len(row.fragments) > len(known) else known
        elif not (aligned == len(row.fragments) and goes_on):
            break
        end += 1
    return end if full_rows >= 2 else start


def _aligned(one: Fragment, other: Fragment) -> bool:
    """Whether two cells share a column: left, right or middle in one line."""
    slack = 0.6 * max(one.height, other.height)
    centres = ((one.left + one.right) - (other.left + other.right)) / 2
    return (
        abs(one.left - other.left) < slack
        or abs(one.right - other.right) < slack
        or abs(centres) < slack
    )


def _table_text(rows: list[Row], words: set[str]) -> str:
    """The table's rows as lines, cells parted by ` | `; an empty cell stays empty."""
    columns = max(rows, key=lambda row: len(row.fragments)).fragments
    lines: list[list[list[str]]] = []
    for row in rows:
        cells: list[list[str]] = [[] for _ in columns]
        for fragment in row.fragments:
            place = min(range(len(columns)), key=lambda index: _distance(fragment, columns[index]))
            cells[place].append(fragment.text)
        if lines and not cells[0] and len(row.fragments) < 2:
            for place, texts in enumerate(cells):
                lines[-1][place] += texts
        else:
            lines.append(cells)
    return "\n".join(
        " | ".join(join_lines(texts, words) for texts in line).strip() for line in lines
    )


def _distance(one: Fragment, column: Fragment) -> float:
    """How far a fragment is from a column: the gap between them, less what they share."""
    return max(one.left, column.left) - min(one.right, column.right)


def _paragraphs(rows: list[Row], words: set[str], pitch: float, method: str) -> list[str]:
    """Lines joined into paragraphs, parted by gaps, sizes, indents, short lines and list marks."""
    if not rows:
        return []
    left, right = min(row.left for row in rows), max(row.right for row in rows)
    groups: list[list[Row]] = [[rows[0]]]
    for above, below in pairwise(rows):
        if _parted(above, below, left, right, pitch, method):
            groups.append([below])
        else:
            groups[-1].append(below)
    return [join_lines([row.text for row in group], words) for group in groups]


def _parted(above: Row, below: Row, left: float, right: float, pitch: float, method: str) -> bool:
    """Whether a new paragraph begins with `below`."""
    size_change = 1.35 if method == "ocr" else 1.15  # boxes around pictures of words vary
    taller, lower = max(above.height, below.height), min(above.height, below.height)
    if below.middle - above.middle > 1.25 * max(pitch, 0.9 * lower) or taller > size_change * lower:
        return True
    if LIST_ITEM.match(below.text):
        return True
    ended = bool(SENTENCE_END.search(above.text))
    short = above.right < right - 0.12 * (right - left)
    very_short = above.right < left + 0.65 * (right - left)
    opens = not below.text[0].islower()
    indented = below.left > above.left + 0.8 * below.height and above.left < left + below.height
    return (ended and (short or indented)) or (very_short and opens)
