"""One door for all file formats: look at what a file really is, then read it.

In: a path and the config's limits. Out: a `Reading`, or `UnusableError` with the reason.
Documents only; files of ready-made rows have their own readers (`row_files.py`). Knows neither the
project nor the stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.ingest.cleaning import one_line, plain_blocks
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import Fragment, OnPage, PageText, Reading, UnusableError
from potstill.ingest.encodings import PURPOSE, decode, wide
from potstill.ingest.reader_plugins import plugin_readers
from potstill.ingest.row_files import KINDS as ROW_KINDS

SeePage = Callable[[Any, int], list[Fragment]]
HEAD = 4096
# What a file's first bytes say it is.
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"PAR1", "a Parquet file"),
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
    ".docm": "Word",
    ".pptx": "slides",
    ".pptm": "slides",
    ".epub": "EPUB",
    ".html": "HTML",
    ".htm": "HTML",
    ".xhtml": "HTML",
    ".md": "Markdown",
    ".markdown": "Markdown",
    ".txt": "text",
    ".text": "text",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".tif": "picture",
    ".tiff": "picture",
    ".webp": "picture",
    ".bmp": "picture",
}
"""What files of a name are read as."""
OWN = (*KINDS, *ROW_KINDS)
"""Suffixes that are read without a plug-in."""
CONTENT = {
    "PDF": ("a PDF",),
    "Word": ("a zip archive",),
    "slides": ("a zip archive",),
    "EPUB": ("a zip archive",),
    "picture": (
        "a PNG picture",
        "a JPEG picture",
        "a TIFF picture",
        "a WebP picture",
        "a BMP picture",
    ),
}
"""What the first bytes of such a file must say; of all others, that it is text."""
HEADING = re.compile(r"^#\s+(.+)|^(.+)\n=+$", re.MULTILINE)
LONGEST_TITLE = 150


def read_file(path: Path, config: IngestConfig, see: SeePage, on_page: OnPage) -> Reading:
    """The text of one file. `see(page, number)` recognises a drawn page (see `pdf.py`).

    Errors: UnusableError for a file that cannot be used, MissingExtraError for a missing package.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        others = plugin_readers(config, OWN)
        if other := others.get(path.suffix.lower()):
            check_file(path, other.content, config.max_file_bytes)
            with unreadable():
                return other.read(path)
        known = ", ".join(sorted({*OWN, *others}))
        raise UnusableError(
            "unsupported_type",
            f"files named {path.suffix or 'without a suffix'} are not read; potstill reads {known}",
        )
    check_file(path, CONTENT.get(kind, ("text",)), config.max_file_bytes)
    with unreadable():
        return _read(kind, path, config, see, on_page)


def check_file(path: Path, contents: str | tuple[str, ...], most_bytes: int | None) -> None:
    """Refuse a file that is empty, too large, or not what its name says.

    `contents`: what it may be, in the words of `what_is`. Errors: UnusableError.
    """
    with unreadable():
        size = path.stat().st_size
        if size == 0:
            raise UnusableError("empty_file", "the file is empty (0 bytes)")
        if most_bytes is not None and size > most_bytes:
            raise UnusableError(
                "too_large",
                f"the file has {size:,} bytes, and ingest.max_file_bytes allows "
                f"{most_bytes:,}; split it or raise the limit",
            )
        with path.open("rb") as file:
            content = what_is(file.read(HEAD))
    if content not in (contents if isinstance(contents, tuple) else (contents,)):
        raise UnusableError("not_what_it_says", f"the file is named {path.suffix} but is {content}")


@contextmanager
def unreadable() -> Iterator[None]:
    """A file that the system will not let us read is set aside like any other bad file."""
    try:
        yield
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
    if kind == "slides":
        require("pptx", "documents", PURPOSE)
        from potstill.ingest.slides import read_pptx

        return read_pptx(path, config.max_pages, on_page)
    if kind == "EPUB":
        require("lxml", "documents", PURPOSE)
        from potstill.ingest.epub import read_epub

        return read_epub(path, config.max_pages)
    if kind == "HTML":
        require("lxml", "documents", PURPOSE)
        from potstill.ingest.html import read_html

        return read_html(path)
    if kind == "picture":
        require("PIL", "ocr", "Reading pictures")
        from potstill.ingest.pictures import read_picture

        return read_picture(path, config.ocr, config.max_pages, see, on_page)
    return read_text(path)


def what_is(head: bytes) -> str:
    """What the first bytes of a file are, in words: "a PDF", "a zip archive", "text" ..."""
    if b"%PDF-" in head[:1024]:
        return "a PDF"
    for magic, name in MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # BM alone may begin a text
        return "a BMP picture"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")) or wide(head):
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
