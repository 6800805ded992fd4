"""Read a DOCX file: paragraphs, lists, tables and notes in the order of the document.

In: a path. Out: a `Reading` without pages (a DOCX has none until it is printed).
python-docx opens the package; the walk below also sees what its `text` leaves out: tracked
insertions, content controls, footnotes. Knows no chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docx.opc.part import PartFactory
from docx.oxml import parse_xml
from docx.oxml.ns import qn
from docx.package import Package
from docx.parts.document import DocumentPart

from potstill.ingest.archive import has_macros, opened
from potstill.ingest.cleaning import one_line
from potstill.ingest.content import MACROS, PageText, Reading, UnusableError

# python-docx knows these by no name; inside they are like any Word file.
for kind in (
    "application/vnd.ms-word.document.macroEnabled.main+xml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
):
    PartFactory.part_type_for[kind] = DocumentPart
MAIN_PART = "word/document.xml"
NOTE_PARTS = ("footnotes", "endnotes")
CONTAINERS = {qn("w:sdt"), qn("w:sdtContent"), qn("w:ins"), qn("w:moveTo"), qn("w:customXml")}
HIDDEN = {qn("w:del"), qn("w:moveFrom"), qn("w:instrText"), qn("w:delText"), qn("w:pPr")}
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
PARAGRAPH, TABLE, ROW, CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
SPACES = {qn("w:tab"): " ", qn("w:br"): " ", qn("w:cr"): " ", qn("w:noBreakHyphen"): "-"}


def read_docx(path: Path) -> Reading:
    """The text of a Word file, with macros (DOCM) or without; a macro is never run.

    Errors: UnusableError with the reason damaged_docx, encrypted_docx, not_docx, zip_bomb or
    no_text.
    """
    with opened(path, "Word file", "docx") as archive:
        if MAIN_PART not in archive.namelist():
            raise UnusableError("not_docx", "the file is a zip archive, but not a Word document")
        notes = [MACROS] if has_macros(archive) else []
    try:
        document = Package.open(str(path)).main_document_part.document
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
    return Reading(title, [PageText(0, blocks)], notes=notes)


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
