"""Read a DOCX file: paragraphs, lists, tables and notes in the order of the document.

In: a path. Out: a `Reading` without pages (a DOCX has none until it is printed).
python-docx opens the package; the walk below also sees what its `text` leaves out: tracked
insertions, content controls, footnotes. Knows no chunks.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
from docx.oxml import parse_xml
from docx.oxml.ns import qn

from potstill.ingest.cleaning import one_line
from potstill.ingest.content import PageText, Reading, UnusableError

MOST_UNPACKED = 512 * 1024 * 1024
MOST_XML = 64 * 1024 * 1024
MAIN_PART = "word/document.xml"
NOTE_PARTS = ("footnotes", "endnotes")
CONTAINERS = {qn("w:sdt"), qn("w:sdtContent"), qn("w:ins"), qn("w:moveTo"), qn("w:customXml")}
HIDDEN = {qn("w:del"), qn("w:moveFrom"), qn("w:instrText"), qn("w:delText"), qn("w:pPr")}
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
PARAGRAPH, TABLE, ROW, CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
SPACES = {qn("w:tab"): " ", qn("w:br"): " ", qn("w:cr"): " ", qn("w:noBreakHyphen"): "-"}


def read_docx(path: Path) -> Reading:
    """The text of a Word file.

    Errors: UnusableError with the reason damaged_docx, not_docx, zip_bomb or no_text.
    """
    _check_package(path)
    try:
        document = docx.Document(str(path))
        blocks = list(_blocks(document.element.body))
        blocks += _notes(document)
        title = one_line(document.core_properties.title or "")
    except Exception as error:  # whatever a damaged package makes lxml or python-docx raise
        raise UnusableError(
            "damaged_docx",
            f"the Word file is damaged ({type(error).__name__}); open and save it again",
        ) from error
    if not blocks:
        raise UnusableError("no_text", "the Word file holds no text")
    return Reading(title, [PageText(0, blocks)])


def _check_package(path: Path) -> None:
    """Look at the archive's list of contents before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # The last is what zipfile raises for an archive of a version that does not exist (yet).
        raise UnusableError(
            "damaged_docx", "the Word file breaks off or is damaged; copy it again"
        ) from None
    if MAIN_PART not in {member.filename for member in members}:
        raise UnusableError("not_docx", "the file is a zip archive, but not a Word document")
    xml = sum(one.file_size for one in members if one.filename.endswith((".xml", ".rels")))
    if xml > MOST_XML or sum(one.file_size for one in members) > MOST_UNPACKED:
        raise UnusableError(
            "zip_bomb", f"the Word file unpacks to {xml / 1e6:,.0f} MB of XML, which is refused"
        )


def _blocks(container: Any) -> Iterator[str]:
    """Paragraphs and tables below a body, cell or note, in order."""
    for child in container:
        if child.tag == PARAGRAPH:
            if text := _paragraph(child):
                yield text
        elif child.tag == TABLE:
            if text := "\n".join(_rows(child)):
                yield text
        elif child.tag in CONTAINERS:
            yield from _blocks(child)


def _paragraph(paragraph: Any) -> str:
    text = one_line("".join(_runs(paragraph)))
    listed = paragraph.find(f"{qn('w:pPr')}/{qn('w:numPr')}") is not None
    return f"- {text}" if listed and text else text


def _runs(element: Any) -> Iterator[str]:
    """The visible text below an element; drawings' text boxes once, not with their fallback."""
    for child in element:
        if child.tag == qn("w:t"):
            yield child.text or ""
        elif child.tag in SPACES:
            yield SPACES[child.tag]
        elif child.tag not in HIDDEN and child.tag != FALLBACK:
            if child.tag == PARAGRAPH:
                yield " "
            yield from _runs(child)


def _rows(table: Any) -> Iterator[str]:
    """A table's rows as `cell | cell`; a cell's own paragraphs and tables on one line."""
    for row in table.iter(ROW):
        if next(row.iterancestors(TABLE)) is not table:
            continue  # a table inside a cell; its text comes with the cell
        cells = [one_line(" ".join(_blocks(cell))) for cell in _cells(row)]
        if any(cells):
            yield " | ".join(cells)


def _cells(row: Any) -> Iterator[Any]:
    for child in row:
        if child.tag == CELL:
            yield child
        elif child.tag in CONTAINERS:
            yield from _cells(child)


def _notes(document: Any) -> list[str]:
    """Footnotes and endnotes, after the text."""
    found: list[str] = []
    for relation in document.part.rels.values():
        kind = relation.reltype.rsplit("/", 1)[-1]
        if kind not in NOTE_PARTS or relation.is_external:
            continue
        for note in parse_xml(relation.target_part.blob):
            if note.get(qn("w:type")) in (None, "normal"):
                found += _blocks(note)
    return found
