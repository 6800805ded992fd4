"""One door for all file formats: look at what a file really is, then read it.

In: a path and a `PageReader`'s settings. Out: a `Reading`, or `UnusableError` with the reason.
PDF, DOCX, Markdown and plain text. Knows neither the project nor the stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.ingest.cleaning import one_line, plain_blocks
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import Fragment, OnPage, PageText, Reading, UnusableError

SeePage = Callable[[Any, int], list[Fragment]]
PURPOSE = "Reading documents"
HEAD = 4096
# What a file's first bytes say it is.
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or password-protected Office file"),
    (b"{\\rtf", "an RTF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
KINDS = {
    ".pdf": "PDF",
    ".docx": "Word",
    ".md": "Markdown",
    ".markdown": "Markdown",
    ".txt": "text",
    ".text": "text",
}
HEADING = re.compile(r"^#\s+(.+)|^(.+)\n=+$", re.MULTILINE)
LONGEST_TITLE = 150


def read_file(path: Path, config: IngestConfig, see: SeePage, on_page: OnPage) -> Reading:
    """The text of one file. `see(page, number)` recognises a drawn page (see `pdf.py`).

    Errors: UnusableError for a file that cannot be used, MissingExtraError for a missing package.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(sorted(KINDS))
        raise UnusableError(
            "unsupported_type",
            f"files named {path.suffix or 'without a suffix'} are not read; potstill reads {known}",
        )
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnusableError("empty_file", "the file is empty (0 bytes)")
        if size > config.max_file_bytes:
            raise UnusableError(
                "too_large",
                f"the file has {size:,} bytes, and ingest.max_file_bytes allows "
                f"{config.max_file_bytes:,}; split it or raise the limit",
            )
        with path.open("rb") as file:
            content = what_is(file.read(HEAD))
        if content != {"PDF": "a PDF", "Word": "a zip archive"}.get(kind, "text"):
            raise UnusableError(
                "not_what_it_says", f"the file is named {path.suffix} but is {content}"
            )
        return _read(kind, path, config, see, on_page)
    except OSError as error:
        raise UnusableError("unreadable", f"the file cannot be read: {error.strerror}") from error


def _read(kind: str, path: Path, config: IngestConfig, see: SeePage, on_page: OnPage) -> Reading:
    if kind == "PDF":
        require("pypdfium2", "documents", PURPOSE)
        from potstill.ingest.pdf import read_pdf

        return read_pdf(path, config.ocr, config.max_pages, see, on_page)
    if kind == "Word":
        require("docx", "documents", PURPOSE)
        from potstill.ingest.word import read_docx

        return read_docx(path)
    return read_text(path)


def what_is(head: bytes) -> str:
    """What the first bytes of a file are, in words: "a PDF", "a zip archive", "text" ..."""
    if b"%PDF-" in head[:1024]:
        return "a PDF"
    for magic, name in MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")) or _wide(head):
        return "text"
    odd = sum(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)
    return "binary data" if odd > 0.02 * len(head) else "text"


def read_text(path: Path) -> Reading:
    """The text of a Markdown or plain text file, whatever its encoding.

    Errors: UnusableError with the reason not_text or no_text.
    """
    text = decode(path.read_bytes())
    blocks = plain_blocks(text)
    if not blocks:
        raise UnusableError("no_text", "the file holds only white space")
    heading = HEADING.search(text[:HEAD])
    title = one_line(heading[1] or heading[2]) if heading else ""
    return Reading(title[:LONGEST_TITLE], [PageText(0, blocks)])


def decode(data: bytes) -> str:
    """Bytes as text: by the byte order mark, as UTF-8, as UTF-16 without a mark, else by guess.

    Errors: UnusableError with the reason not_text.
    """
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    wide = _wide(data[:HEAD])
    try:
        return data.decode(wide or "utf-8")
    except UnicodeDecodeError:
        return _guessed(data)


def _wide(head: bytes) -> str:
    """The kind of UTF-16 that text without a mark seems to be, or ""."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) / 2
    if half >= 2 and odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if half >= 2 and even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return ""


def _guessed(data: bytes) -> str:
    guesser = require("charset_normalizer", "documents", PURPOSE)
    found = guesser.from_bytes(data)
    best = found.best()
    if best is None:
        raise UnusableError("not_text", "no text encoding fits the file's bytes")
    for other in found:  # many encodings fit a few accents alike; this one is by far the commonest
        alike = other.chaos <= best.chaos and other.coherence >= best.coherence
        if alike and "cp1252" in (other.encoding, *other.could_be_from_charset):
            return data.decode("cp1252", errors="replace")
    return str(best)
