"""Open a zip package (DOCX, PPTX, EPUB) only after a look at its list of contents.

In: a path. Out: an open archive that is safe to unpack, or `UnusableError` with the reason.
Knows no format inside the zip.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.ingest.content import UnusableError

MOST_MEMBERS = 50_000
MOST_UNPACKED = 512 * 1024 * 1024
MOST_TEXT = 64 * 1024 * 1024
"""Of XML and HTML together; as a tree in memory it is ten times that."""
MOST_RATIO, RATIO_FROM = 300, 16 * 1024 * 1024
"""A member of this size that shrank this much holds the same few bytes over and over."""
TEXT_ENDINGS = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx")
LOCKED = 0x1


@contextmanager
def opened(path: Path, kind: str, suffix: str) -> Iterator[zipfile.ZipFile]:
    """The archive, checked. `kind` is for people ("Word file"), `suffix` for reasons ("docx").

    zipfile never unpacks more than the list of contents declares, so the declared sizes are
    limits. Errors: UnusableError with the reason damaged_..., encrypted_... or zip_bomb.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # The last is what zipfile raises for an archive of a version that does not exist (yet).
        raise UnusableError(
            f"damaged_{suffix}", f"the {kind} breaks off or is damaged; copy it again"
        ) from None
    with archive:
        _check(archive, kind, suffix)
        yield archive


def _check(archive: zipfile.ZipFile, kind: str, suffix: str) -> None:
    members = archive.infolist()
    if any(member.flag_bits & LOCKED for member in members):
        raise UnusableError(
            f"encrypted_{suffix}", f"the {kind} is locked with a password; save a copy without one"
        )
    if len(members) > MOST_MEMBERS:
        raise UnusableError("zip_bomb", f"the {kind} holds {len(members):,} parts, refused")
    text = sum(one.file_size for one in members if one.filename.lower().endswith(TEXT_ENDINGS))
    whole = sum(one.file_size for one in members)
    if text > MOST_TEXT:
        raise UnusableError(
            "zip_bomb", f"the {kind} unpacks to {text / 1e6:,.0f} MB of XML, which is refused"
        )
    if whole > MOST_UNPACKED:
        raise UnusableError(
            "zip_bomb", f"the {kind} unpacks to {whole / 1e6:,.0f} MB, which is refused"
        )
    for one in members:
        if one.file_size > max(RATIO_FROM, MOST_RATIO * one.compress_size):
            raise UnusableError(
                "zip_bomb",
                f"a part of the {kind} unpacks to {one.file_size / 1e6:,.0f} MB from "
                f"{one.compress_size / 1e6:,.2f} MB, which is refused",
            )


def has_macros(archive: zipfile.ZipFile) -> bool:
    """Whether an Office file carries a program."""
    return any(name.lower().endswith("vbaproject.bin") for name in archive.namelist())
