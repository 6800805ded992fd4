"""Clean text: characters, line ends, and pages joined into one text with exact page spans.

In: strings and page texts. Out: strings. Knows no file format and no geometry.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from potstill.ingest.content import PageText
from potstill.records import Page

# Only what stands for letters: full compatibility folding would also turn m² into m2.
LIGATURES = {
    "\u2103": "°C", "\u2109": "°F",
    "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl",
    "\ufb05": "st", "\ufb06": "st",
}  # fmt: skip
ODD_SPACES = dict.fromkeys(
    "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " "
)
INVISIBLE = dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufffe\uffff")
LINE_ENDS = {"\u2028": "\n", "\u2029": "\n\n", "\u0085": "\n", "\x0b": "\n", "\x0c": "\n\n"}
CONTROLS = {
    chr(code): None for code in (*range(9), *range(14, 32), *range(0x7F, 0x85), *range(0x86, 0xA0))
}
TABLE = str.maketrans({**CONTROLS, **LINE_ENDS, **LIGATURES, **ODD_SPACES, **INVISIBLE})

SENTENCE_END = re.compile(r"[.!?:;…][\"'”\u2019)\]]*$")
WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
BROKEN_WORD = re.compile(r"([^\W_]+)-$")
WORD_START = re.compile(r"^([^\W_]+)")
LIST_ITEM = re.compile(r"^(?:[•‣◦▪●○■\u2013—*+-]|\(?(?:\d{1,3}|[a-z])[.)])\s")
LAID_OUT = re.compile(r"^(?:\s|[#>|]|```|~~~|=+$|-+$)|\S {2,}\S|\t|\|")
FENCE = re.compile(r"^(?:```|~~~)")
FULL_LINE = 40
LONGEST_WORD = 80


def clean_characters(text: str) -> str:
    """Line ends as \\n, ligatures spelled out, odd spaces plain, invisible characters gone; NFC."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(TABLE)
    return unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """`clean_characters`, and every run of white space as one space."""
    return " ".join(clean_characters(text).split())


def vocabulary(lines: Iterable[str]) -> set[str]:
    """Every word of the document in lower case, hyphenated ones whole; a line's last word with a
    trailing hyphen is a half and does not count."""
    words: set[str] = set()
    for line in lines:
        found = WORD.findall(line)
        if line.endswith("-") and found:
            found.pop()
        words.update(word.lower() for word in found)
    return words


def join_lines(lines: Iterable[str], words: set[str]) -> str:
    """Wrapped lines as one paragraph; a word broken at the line's end is put together.

    Whether the hyphen belongs to the word (first-aid) is asked of the document's own vocabulary;
    where the document does not say, the hyphen goes.
    """
    pieces: list[str] = []
    for line in lines:
        if pieces:
            dropped, space = _seam(pieces[-1], line, words)
            pieces[-1] = pieces[-1][: len(pieces[-1]) - dropped]
            line = space + line
        pieces.append(line)
    return "".join(pieces)


def _seam(before: str, after: str, words: set[str]) -> tuple[int, str]:
    """How two lines meet: characters to drop at the end of the first, and what comes between."""
    first, second = BROKEN_WORD.search(before[-LONGEST_WORD:]), WORD_START.match(after)
    if first is None or second is None:
        return 0, " "
    whole = f"{first[1]}{second[1]}".lower()
    hyphenated = f"{first[1]}-{second[1]}".lower()
    keeps = (hyphenated in words and whole not in words) or not second[1][0].islower()
    return (0 if keeps else 1), ""


def plain_blocks(text: str) -> list[str]:
    """Blocks of a plain text or Markdown file; wrapped prose becomes one line, the rest stays."""
    text = clean_characters(text)
    lines = [line.rstrip() for line in text.split("\n")]
    words = vocabulary(lines)
    blocks: list[list[str]] = [[]]
    fenced = False
    for line in lines:
        fenced ^= bool(FENCE.match(line))
        if line or fenced:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [_unwrapped(block, words) for block in blocks if any(block)]


def _unwrapped(lines: list[str], words: set[str]) -> str:
    """One paragraph as one line, where it is prose that an editor wrapped; else as it stands."""
    laid_out = any(LAID_OUT.search(line) or LIST_ITEM.match(line) for line in lines)
    full = all(len(line) >= FULL_LINE for line in lines[:-1])
    if laid_out or not full:
        return "\n".join(lines)
    return join_lines(lines, words)


def assemble(pages: list[PageText], words: set[str]) -> tuple[str, tuple[Page, ...]]:
    """One text of all pages, and where each page stands in it.

    Blocks are parted by an empty line. A paragraph that goes on over a page border is joined.
    Page spans are half-open, in order, and do not overlap.
    """
    pieces: list[str] = []
    length = 0
    spans: list[Page] = []
    for page in pages:
        if not page.blocks:
            continue
        start = length
        for position, block in enumerate(page.blocks):
            dropped, space = 0, "\n\n" if pieces else ""
            mended = False
            if spans and position == 0 and _goes_on(pieces[-1], block):
                dropped, space = _seam(pieces[-1], block, words)
                mended = not space
                pieces[-1] = pieces[-1][: len(pieces[-1]) - dropped]
            length += len(space) + len(block) - dropped
            pieces.append(space + block)
            if position == 0:
                start = length - len(block)
                if mended:  # the word belongs to the page on which it began
                    start += len(block.split(maxsplit=1)[0])
                    spans[-1] = spans[-1].model_copy(update={"end": start})
        if page.number:
            spans.append(Page(number=page.number, start=start, end=length, method=page.method))
    return "".join(pieces), tuple(spans)


def _goes_on(before: str, block: str) -> bool:
    """Whether `block` continues the paragraph `before`, the last of the page above."""
    if "\n" in block or "\n" in before.strip() or " | " in before:
        return False  # a table or a list
    prose = len(before) >= FULL_LINE and block[0].islower()
    return prose and not SENTENCE_END.search(before[-LONGEST_WORD:])
