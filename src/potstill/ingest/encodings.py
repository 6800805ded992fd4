"""Bytes as text, whatever their encoding.

In: bytes, and what a file says of itself. Out: text; or that no encoding fits. charset-normalizer
guesses where nothing else helps. Knows no format.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from potstill.core.extras import require
from potstill.ingest.content import UnusableError

PURPOSE = "Reading documents"
HEAD = 4096
BLOCK = 1 << 20
SAMPLE = 1 << 16
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def decode(data: bytes, declared: str = "") -> str:
    """By the byte order mark, as UTF-8, as UTF-16 without a mark, as declared, else by guess.

    UTF-8 comes before what a file declares of itself: bytes that are valid UTF-8 and more than
    ASCII are hardly ever anything else, and declarations are often wrong.
    Errors: UnusableError with the reason not_text.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode(wide(data[:HEAD]) or "utf-8")
    except UnicodeDecodeError:
        pass
    if declared and is_known(declared):
        try:
            return data.decode(WEB.get(declared.lower(), declared))
        except UnicodeDecodeError:
            pass
    return guessed(data)[0]


# What the web means by these names; the plain ones leave letters out that pages use.
WEB = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "gb2312": "gb18030"}


def is_known(encoding: str) -> bool:
    """Whether Python can decode text in it."""
    try:
        return bool(getattr(codecs.lookup(encoding), "_is_text_encoding", True))
    except LookupError:
        return False


def wide(head: bytes) -> str:
    """The kind of UTF-16 that text without a mark seems to be, or ""."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) / 2
    if half >= 2 and odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if half >= 2 and even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return ""


def guessed(data: bytes) -> tuple[str, str]:
    """(text, encoding). Errors: UnusableError with the reason not_text."""
    guesser = require("charset_normalizer", "documents", PURPOSE)
    found = guesser.from_bytes(data)
    best = found.best()
    if best is None:
        raise UnusableError("not_text", "no text encoding fits the file's bytes")
    for other in found:  # many encodings fit a few accents alike; this one is by far the commonest
        alike = other.chaos <= best.chaos and other.coherence >= best.coherence
        if alike and "cp1252" in (other.encoding, *other.could_be_from_charset):
            return data.decode("cp1252", errors="replace"), "cp1252"
    return str(best), best.encoding


def encoding_of(path: Path) -> str:
    """The encoding of a text file of any size, in flat memory.

    A file that is UTF-8 but for a few bytes counts as UTF-8; its bad rows are found one by one.
    Errors: UnusableError with the reason not_text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        block = file.read(BLOCK)
        for mark, encoding in MARKS:
            if block.startswith(mark):
                return encoding
        if odd := wide(block[:HEAD]):
            return odd
        while block:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                break
            block = file.read(BLOCK)
        else:
            return "utf-8"  # half a character at the very end is one bad row
    text = block.decode("utf-8", errors="replace")
    wrong = text.count("\ufffd")
    if sum(not one.isascii() for one in text) >= 5 * wrong:
        return "utf-8"
    bad = next(place for place, byte in enumerate(block) if byte > 127)
    return guessed(block[max(0, bad - SAMPLE) : bad + SAMPLE])[1]
