"""Books and slides: what is read of them, and which of them are refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import pytest
from tests.unit.ingest.samples import PARTS, archive, epub, locked, pptx, repacked, with_macros

from potstill.errors import InputError
from potstill.ingest.epub import read_epub
from potstill.ingest.slides import read_pptx
from potstill.ingest.word import read_docx

Ingest = Callable[..., Any]
ENCRYPTION = (
    '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
    'xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData><enc:CipherData>'
    '<enc:CipherReference URI="{}"/></enc:CipherData></enc:EncryptedData></encryption>'
)


def test_a_book_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    path = tmp_path / "a.epub"
    path.write_bytes(epub())
    reading = read_epub(path, 10)
    assert reading.title == "The still"
    assert [page.blocks for page in reading.pages] == [["One", "Copper is hot.", "Größe"]]


def test_a_book_whose_fonts_alone_are_locked_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.epub"
    path.write_bytes(epub(**{"META-INF__encryption.xml": ENCRYPTION.format("OEBPS/font.otf")}))
    assert read_epub(path, 10).pages[0].blocks


def test_slides_are_pages_with_lists_tables_and_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.pptx"
    path.write_bytes(pptx("First point", "Second point"))
    seen: list[tuple[int, int]] = []
    reading = read_pptx(path, 10, lambda done, of: seen.append((done, of)))
    assert [page.number for page in reading.pages] == [1, 2]
    assert reading.pages[0].blocks == [
        "Slide one",
        "- First point\n  - Second point",
        "Code | Meaning\nH12 | low water",
        "Notes: Say it slowly.",
    ]
    assert reading.pages[1].blocks == ["The second slide."]
    assert reading.title == ""  # "PowerPoint Presentation" is nobody's title
    assert seen == [(1, 2), (2, 2)]


def docx_bytes(text: str) -> bytes:
    document, buffer = docx.Document(), io.BytesIO()
    document.add_paragraph(text)
    document.save(buffer)
    return buffer.getvalue()


def test_of_a_file_with_macros_the_text_is_read_and_the_run_says_so(
    project: Path, run_ingest: Ingest
) -> None:
    sentence = "Valve RV-31 opens at 93 degrees and lets the water run."
    (project / "a.docm").write_bytes(with_macros(docx_bytes(sentence), "word"))
    (project / "b.pptm").write_bytes(with_macros(pptx(sentence), "ppt"))
    outcome = run_ingest("a.docm", "b.pptm")
    assert outcome.rejected == []
    assert all(sentence in document["text"] for document in outcome.documents)
    notes = [event["message"] for event in outcome.events if event["kind"] == "warning"]
    assert notes == [
        "a.docm carries macros; only its text is read, and no macro is run.",
        "b.pptm carries macros; only its text is read, and no macro is run.",
    ]
    assert read_docx(project / "a.docm").notes


BLANK = {"OEBPS__text__one .xhtml": b"<p></p>", "OEBPS__two.xhtml": b"<p></p>"}
BAD = {
    "sheet.epub": (archive({"xl/workbook": "<x/>"}), "not_epub", "not an EPUB"),
    "cut.epub": (epub()[:600], "damaged_epub", "damaged"),
    "lost.epub": (
        archive({name: data for name, data in PARTS.items() if "two" not in name}),
        "damaged_epub",
        r"lacks its part OEBPS/two\.xhtml",
    ),
    "torn.epub": (epub(**{"OEBPS__book.opf": "<package"}), "damaged_epub", r"book\.opf .*damaged"),
    "drm.epub": (
        epub(**{"META-INF__encryption.xml": ENCRYPTION.format("OEBPS/two.xhtml")}),
        "encrypted_epub",
        r"locked by its seller \(DRM\)",
    ),
    "locked.epub": (locked(epub()), "encrypted_epub", "locked with a password"),
    "bomb.epub": (epub(**{"OEBPS__two.xhtml": bytes(70_000_000)}), "zip_bomb", "70 MB of XML"),
    "ratio.epub": (epub(**{"OEBPS__p.png": bytes(30_000_000)}), "zip_bomb", "unpacks to 30 MB"),
    "blank.epub": (epub(**BLANK), "no_text", "the book holds no text"),
    "text.epub": (b"only some words", "not_what_it_says", "named .epub but is text"),
    "book.pptx": (epub(), "not_pptx", "not a presentation"),
    "cut.pptx": (pptx()[:5000], "damaged_pptx", "damaged"),
    "torn.pptx": (
        repacked(pptx(), **{"ppt__slides__slide1.xml": b"<p:sld"}),
        "damaged_pptx",
        "damaged",
    ),
    "locked.pptx": (locked(pptx()), "encrypted_pptx", "locked with a password"),
    "bomb.pptx": (repacked(pptx(), **{"ppt__y.xml": bytes(70_000_000)}), "zip_bomb", "70 MB"),
    "old.pptx": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        "not_what_it_says",
        "old or password-protected Office file",
    ),
    "locked.docx": (locked(docx_bytes("x")), "encrypted_docx", "locked with a password"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_package_is_one_clear_line(project: Path, run_ingest: Ingest, name: str) -> None:
    data, reason, words = BAD[name]
    (project / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        run_ingest(name)
    (event,) = [one for one in run_ingest.events if one["kind"] == "rejected"]  # type: ignore[attr-defined]
    assert event["reason"] == reason


def test_a_book_or_slides_with_more_parts_than_allowed_are_refused(
    project: Path, run_ingest: Ingest
) -> None:
    (project / "a.epub").write_bytes(epub())
    (project / "b.pptx").write_bytes(pptx())
    with pytest.raises(InputError, match=r"2 parts, and ingest\.max_pages allows 1") as caught:
        run_ingest(".", max_pages=1)
    assert "too_many_pages" in caught.value.hint
