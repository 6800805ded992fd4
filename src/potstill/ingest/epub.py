"""Read an EPUB: the book's parts in the order of its spine, each as HTML.

In: a path. Out: a `Reading` without pages (a book's text flows). The package is opened by hand
(zip and XML), so that nothing but the listed parts is ever unpacked. Knows no chunks.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lxml import etree

from potstill.ingest.archive import opened
from potstill.ingest.cleaning import one_line
from potstill.ingest.content import PageText, Reading, UnusableError
from potstill.ingest.html import page_text

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html")
# Neither entities nor the network: an EPUB's XML comes from anywhere.
SAFE = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def read_epub(path: Path, most_parts: int) -> Reading:
    """The text of a book with at most `most_parts` parts in its spine.

    Errors: UnusableError with the reason damaged_epub, not_epub, encrypted_epub, too_many_pages,
    zip_bomb or no_text.
    """
    with opened(path, "EPUB", "epub") as archive:
        if CONTAINER not in archive.namelist():
            raise UnusableError("not_epub", "the file is a zip archive, but not an EPUB")
        title, parts = _spine(archive)
        if len(parts) > most_parts:
            raise UnusableError(
                "too_many_pages",
                f"the book has {len(parts):,} parts, and ingest.max_pages allows {most_parts:,}",
            )
        if _locked(archive) & set(parts):
            raise UnusableError("encrypted_epub", "the book is locked by its seller (DRM)")
        blocks = [block for part in parts for block in page_text(_bytes(archive, part))[1]]
    if not blocks:
        raise UnusableError("no_text", "the book holds no text")
    return Reading(title, [PageText(0, blocks)])


def _spine(archive: zipfile.ZipFile) -> tuple[str, list[str]]:
    """The title, and the names of the text parts in reading order, without the contents list."""
    container = _xml(archive, CONTAINER)
    package = next((one.get("full-path") for one in container.iter("{*}rootfile")), None)
    if not package:
        raise UnusableError("damaged_epub", "the EPUB does not say where its contents are listed")
    tree = _xml(archive, package)
    items: dict[str, Any] = {one.get("id"): one for one in tree.iter("{*}item")}
    parts: list[str] = []
    for reference in tree.iter("{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        if item.get("media-type") in PAGES:
            name = posixpath.join(posixpath.dirname(package), unquote(item.get("href") or ""))
            parts.append(posixpath.normpath(name))
    title = next((one.text for one in tree.iter("{http://purl.org/dc/elements/1.1/}title")), "")
    return one_line(title or ""), parts


def _locked(archive: zipfile.ZipFile) -> set[str]:
    """Names of the parts that are encrypted (fonts often are, in books that anyone may read)."""
    if ENCRYPTION not in archive.namelist():
        return set()
    return set(_references(_xml(archive, ENCRYPTION)))


def _references(tree: Any) -> Iterator[str]:
    for one in tree.iter("{*}CipherReference"):
        yield posixpath.normpath(unquote(one.get("URI") or ""))


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return etree.fromstring(_bytes(archive, name), SAFE)
    except etree.XMLSyntaxError as error:
        raise UnusableError("damaged_epub", f"{name} in the EPUB is damaged") from error


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise UnusableError("damaged_epub", f"the EPUB lacks its part {name}") from None
    except Exception as error:  # zipfile, zlib and lzma have errors of their own
        raise UnusableError("damaged_epub", f"{name} in the EPUB is damaged") from error
