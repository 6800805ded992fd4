"""What each format's reader makes of files written here."""

# ruff: noqa: RUF001 - other alphabets are the point here

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from reportlab.pdfgen.canvas import Canvas

from potstill.ingest.content import Fragment, Reading, UnusableError
from potstill.ingest.encodings import decode
from potstill.ingest.pdf import read_pdf
from potstill.ingest.readers import read_text, what_is
from potstill.ingest.word import read_docx

A4 = (595.0, 842.0)
LINES = ("Valve RV-31 opens at 93 degrees Celsius.", "It stands behind the heat store.")


def pdf(path: Path, *draw: Callable[[Canvas], None], pages: int = 1) -> Path:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    for one in draw:
        one(canvas)
        canvas.showPage()
    canvas.save()
    path.write_bytes(buffer.getvalue())
    return path


def lines(*texts: str, left: float = 72, top: float = 760) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        for number, text in enumerate(texts):
            canvas.drawString(left, top - 14 * number, text)

    return draw


def picture(canvas: Canvas) -> None:
    from PIL import Image
    from reportlab.lib.utils import ImageReader

    canvas.drawImage(ImageReader(Image.new("L", (40, 60), 90)), 0, 0, *A4)


class FakeOcr:
    """Sees the same words on every page, and remembers which pages it was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def __call__(self, page: Any, number: int) -> list[Fragment]:
        self.shown.append(number)
        return [Fragment("seen by eye", 72, 300, 200, 312)]


def read(path: Path, ocr: str = "auto") -> tuple[Reading, list[int]]:
    eye = FakeOcr()
    return read_pdf(path, ocr, 100, eye, lambda done, of: None), eye.shown


def test_a_text_layer_is_read_without_ocr(tmp_path: Path) -> None:
    reading, shown = read(pdf(tmp_path / "a.pdf", lines(*LINES)))
    assert reading.pages[0].blocks == [" ".join(LINES)]
    assert shown == []


def test_only_pages_without_real_text_are_recognised(tmp_path: Path) -> None:
    def stamped(canvas: Canvas) -> None:
        picture(canvas)
        canvas.drawString(72, 800, "Received 4 May")

    path = pdf(tmp_path / "a.pdf", lines(*LINES), picture, lines(), stamped)
    reading, shown = read(path)
    assert shown == [2, 4]  # page 3 is blank: nothing to see
    assert [page.method for page in reading.pages] == ["text", "ocr", "ocr", "ocr"]
    assert reading.pages[1].blocks == ["seen by eye"]
    assert reading.pages[2].blocks == []


def test_a_scan_with_a_full_text_layer_is_believed(tmp_path: Path) -> None:
    def searchable(canvas: Canvas) -> None:
        picture(canvas)
        lines(*LINES)(canvas)

    assert read(pdf(tmp_path / "a.pdf", searchable))[1] == []


def test_ocr_always_looks_at_every_page_and_never_at_none(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf", lines(*LINES), picture)
    assert read(path, "always")[1] == [1, 2]
    reading, shown = read(path, "never")
    assert shown == []
    assert [(page, problem.reason) for page, problem in reading.lost_pages] == [
        (2, "page_needs_ocr")
    ]


def test_a_scan_alone_without_ocr_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"picture without text, and ingest\.ocr is never"):
        read(pdf(tmp_path / "a.pdf", picture), "never")


def test_hyphens_at_line_ends_are_mended_by_the_documents_own_words(tmp_path: Path) -> None:
    page = lines("The boiler has a high tem-", "perature and a first-", "aid box. Use first-aid.")
    reading, _ = read(pdf(tmp_path / "a.pdf", page))
    text = " ".join(reading.pages[0].blocks)
    assert text == "The boiler has a high temperature and a first-aid box. Use first-aid."


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_turned_pages_read_the_same(tmp_path: Path, angle: int) -> None:
    def turned(canvas: Canvas) -> None:
        canvas.translate(A4[0] / 2, A4[1] / 2)
        canvas.rotate(angle)
        for number, text in enumerate(LINES):
            canvas.drawString(-150, 100 - 14 * number, text)

    reading, _ = read(pdf(tmp_path / "a.pdf", turned))
    assert reading.pages[0].blocks == [" ".join(LINES)]


def test_text_across_the_margin_comes_last_and_apart(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        canvas.saveState()
        canvas.translate(30, 300)
        canvas.rotate(90)
        canvas.drawString(0, 0, "Copy 7 of 9")
        canvas.restoreState()
        lines(*LINES)(canvas)

    reading, _ = read(pdf(tmp_path / "a.pdf", page))
    assert reading.pages[0].blocks == [" ".join(LINES), "Copy 7 of 9"]


@pytest.mark.parametrize(("title", "kept"), [("Pump manual", "Pump manual"), ("scan0001", "")])
def test_a_pdfs_own_title_is_kept_unless_it_is_junk(tmp_path: Path, title: str, kept: str) -> None:
    def page(canvas: Canvas) -> None:
        canvas.setTitle(title)
        lines(*LINES)(canvas)

    assert read(pdf(tmp_path / "a.pdf", page))[0].title == kept


def save(path: Path, document: Any) -> Path:
    document.save(str(path))
    return path


def test_a_word_file_gives_paragraphs_lists_and_tables_in_order(tmp_path: Path) -> None:
    document = docx.Document()
    document.core_properties.title = "Pumps"
    document.add_heading("Chapter one", 1)
    document.add_paragraph("Before the table.")
    table = document.add_table(2, 3)
    for number, text in enumerate(("Code", "Meaning", "Horn", "H12", "Warm\nend", "low")):
        table.cell(number // 3, number % 3).text = text
    table.cell(1, 1).merge(table.cell(1, 2))
    document.add_paragraph("After it.")
    document.add_paragraph()
    reading = read_docx(save(tmp_path / "a.docx", document))
    assert reading.title == "Pumps"
    assert reading.pages[0].number == 0
    assert reading.pages[0].blocks == [
        "Chapter one",
        "Before the table.",
        "Code | Meaning | Horn\nH12 | Warm end low",
        "After it.",
    ]


def test_a_word_file_keeps_insertions_and_content_controls_and_drops_deletions(
    tmp_path: Path,
) -> None:
    document = docx.Document()
    space = nsdecls("w")
    for xml in (
        f"<w:p {space}><w:r><w:t>The limit is </w:t></w:r><w:del><w:r><w:delText>60</w:delText>"
        "</w:r></w:del><w:ins><w:r><w:t>68</w:t></w:r></w:ins></w:p>",
        f"<w:sdt {space}><w:sdtContent><w:p><w:r><w:t>In a</w:t></w:r><w:r><w:tab/></w:r>"
        "<w:r><w:t>box</w:t></w:r></w:p></w:sdtContent></w:sdt>",
        f"<w:p {space}><w:pPr><w:numPr/></w:pPr><w:r><w:t>item</w:t></w:r></w:p>",
    ):
        document.element.body.insert(len(document.element.body) - 1, parse_xml(xml))
    reading = read_docx(save(tmp_path / "a.docx", document))
    assert reading.pages[0].blocks == ["The limit is 68", "In a box", "- item"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Größe: 5 µm – naïve café in plain words.", "cp1252"),
        ("Größe: 5 µm – naïve café", "utf-8"),
        ("Größe: 5 µm – naïve café", "utf-8-sig"),
        ("Größe: 5 µm – naïve café", "utf-16"),
        ("Plain words without a mark", "utf-16-le"),
        ("Plain words without a mark", "utf-16-be"),
        ("Größe: 5 µm – naïve café", "utf-32"),
        ("Плотность бражки равна восьми процентам. Куб медный.", "cp1251"),
        ("銅の蒸留器は二百十二リットルの容量を持つ。", "shift_jis"),
    ],
)
def test_text_is_read_in_its_own_encoding(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_markdown_gives_its_first_heading_as_the_title(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# The still\n\nIt is made\nof copper.\n")
    assert read_text(path).title == "The still"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\n\n%PDF-1.7", "a PDF"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"plain words", "text"),
        ("Größe".encode("utf-16"), "text"),
        (bytes(200), "binary data"),
    ],
)
def test_a_files_first_bytes_tell_what_it_is(head: bytes, kind: str) -> None:
    assert what_is(head) == kind
