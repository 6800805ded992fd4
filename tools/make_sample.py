"""Build the sample handbook's PDF, DOCX and scan from `src/potstill/sample/handbook.md`.

In: the Markdown source (headings, paragraphs, tables, `![caption](figure:name)`).
Out: handbook.pdf (reportlab), handbook.docx (python-docx), handbook-scan.pdf (three pages of the
PDF as slightly crooked, slightly noisy JPEG images with no text layer), beside the source.
The same source gives the same bytes: dates, ids and noise are fixed.

Run: python tools/make_sample.py   (needs the `documents`, `ocr` and `dev` extras)
"""

from __future__ import annotations

import datetime
import html
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import numpy as np
import pypdfium2
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.shared import Pt
from PIL import Image
from reportlab import rl_config
from reportlab.graphics import renderPDF
from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Frame,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)
from sample_figures import INK, PALE, figure

FOLDER = Path(__file__).parents[1] / "src" / "potstill" / "sample"
SCANNED_PAGES = (2, 3, 7)
SCAN_DPI = 150
FIXED_DATE = datetime.datetime(2025, 1, 6, 9, 0)

Block = tuple[str, Any]


def blocks(text: str) -> Iterator[Block]:
    """Yield (kind, content): title, subtitle, h2, h3, text, table (rows of cells), figure."""
    first_paragraph = True
    for part in re.split(r"\n\s*\n", text.strip()):
        if heading := re.fullmatch(r"(#{1,3}) (.+)", part):
            yield ("title", "h2", "h3")[len(heading[1]) - 1], heading[2]
        elif picture := re.fullmatch(r"!\[(.+)\]\(figure:(\w+)\)", part):
            yield "figure", (picture[2], picture[1])
        elif part.startswith("|"):
            rows = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines()]
            yield "table", [row for row in rows if set("".join(row)) != {"-"}]
        else:
            yield ("subtitle" if first_paragraph else "text"), " ".join(part.split())
            first_paragraph = False


BODY = ParagraphStyle(
    "body",
    fontName="Times-Roman",
    fontSize=11,
    leading=14.4,
    spaceAfter=6.5,
    alignment=TA_JUSTIFY,
    textColor=HexColor("#1b1b1b"),
)
STYLES = {
    "title": ParagraphStyle(
        "title", fontName="Helvetica-Bold", fontSize=22, leading=27, textColor=INK, spaceAfter=6
    ),
    "subtitle": ParagraphStyle(
        "subtitle", parent=BODY, fontName="Times-Italic", fontSize=11.5, leading=15, spaceAfter=8
    ),
    "h2": ParagraphStyle(
        "h2",
        fontName="Helvetica-Bold",
        fontSize=14,
        leading=18,
        textColor=INK,
        spaceBefore=10,
        spaceAfter=5,
    ),
    "h3": ParagraphStyle(
        "h3",
        fontName="Helvetica-Bold",
        fontSize=11.5,
        leading=15,
        textColor=INK,
        spaceBefore=5,
        spaceAfter=3,
    ),
    "text": BODY,
    "cell": ParagraphStyle("cell", fontName="Helvetica", fontSize=8.8, leading=11),
    "head": ParagraphStyle(
        "head", fontName="Helvetica-Bold", fontSize=8.8, leading=11, textColor=white
    ),
    "caption": ParagraphStyle(
        "caption",
        parent=BODY,
        fontName="Times-Italic",
        fontSize=9.5,
        alignment=TA_CENTER,
        spaceBefore=2,
        spaceAfter=8,
    ),
}


def pdf_table(rows: list[list[str]], width: float) -> Table:
    """A ruled table; columns are as wide as their longest cell asks for."""
    longest = [max(len(row[column]) for row in rows) + 3 for column in range(len(rows[0]))]
    widths = [width * size / sum(longest) for size in longest]
    cells = [
        [Paragraph(html.escape(cell), STYLES["cell" if number else "head"]) for cell in row]
        for number, row in enumerate(rows)
    ]
    table = Table(cells, colWidths=widths, repeatRows=1, spaceBefore=6, spaceAfter=11)
    table.setStyle(
        TableStyle(
            [
                ("BACKGROUND", (0, 0), (-1, 0), INK),
                ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, PALE]),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("TOPPADDING", (0, 0), (-1, -1), 3),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
                ("LINEBELOW", (0, -1), (-1, -1), 0.8, INK),
            ]
        )
    )
    return table


def page_frame(canvas: Canvas, document: BaseDocTemplate) -> None:
    """Running header and footer."""
    canvas.setFont("Helvetica", 8)
    canvas.setFillColor(INK)
    canvas.setStrokeColor(INK)
    canvas.setLineWidth(0.5)
    if document.page > 1:
        canvas.drawString(62, A4[1] - 40, "Orrin Skerry Tidal Kelp-Drying Station")
        canvas.drawRightString(A4[0] - 62, A4[1] - 40, "Operating Handbook")
        canvas.line(62, A4[1] - 46, A4[0] - 62, A4[1] - 46)
    canvas.drawString(62, 34, "Seventh edition")
    canvas.drawRightString(A4[0] - 62, 34, f"Page {document.page}")
    canvas.line(62, 46, A4[0] - 62, 46)


def make_pdf(content: list[Block]) -> bytes:
    buffer = io.BytesIO()
    document = BaseDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=62,
        rightMargin=62,
        topMargin=58,
        bottomMargin=56,
        title="Orrin Skerry Tidal Kelp-Drying Station: Operating Handbook",
        author="The station office at Haldane Slip",
        invariant=1,
    )
    frame = Frame(62, 56, A4[0] - 124, A4[1] - 114, 0, 0, 0, 0)
    document.addPageTemplates(PageTemplate("page", [frame], onPage=page_frame))
    story: list[Any] = []
    for kind, value in content:
        if kind == "table":
            story.append(KeepTogether([pdf_table(value, A4[0] - 124)]))
        elif kind == "figure":
            drawing = figure(value[0])
            drawing.hAlign = "CENTER"
            caption = Paragraph(html.escape(value[1]), STYLES["caption"])
            story.append(KeepTogether([Spacer(1, 4), drawing, caption]))
        else:
            if kind in ("h2", "h3"):
                story.append(CondPageBreak(90 if kind == "h2" else 60))
            unbroken = html.escape(value).replace(" °C", "\u00a0°C")
            story.append(Paragraph(unbroken, STYLES[kind]))
    document.build(story)
    return buffer.getvalue()


def picture_of(name: str) -> bytes:
    """A figure as PNG, drawn by way of a one-page PDF."""
    drawing = figure(name)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(drawing.width, drawing.height), invariant=1)
    renderPDF.draw(drawing, canvas, 0, 0)
    canvas.save()
    page = pypdfium2.PdfDocument(buffer.getvalue())[0]
    png = io.BytesIO()
    page.render(scale=2.5).to_pil().quantize(64).save(png, "PNG", optimize=True)
    return png.getvalue()


def make_docx(content: list[Block]) -> bytes:
    document = docx.Document()
    section = document.sections[0]
    section.page_width, section.page_height = Pt(A4[0]), Pt(A4[1])
    normal = document.styles["Normal"].font
    normal.name, normal.size = "Georgia", Pt(10.5)
    section.header.paragraphs[0].text = "Orrin Skerry Tidal Kelp-Drying Station"
    section.footer.paragraphs[0].text = "Seventh edition"
    for kind, value in content:
        if kind == "table":
            table = document.add_table(rows=0, cols=len(value[0]), style="Light Grid Accent 1")
            for row in value:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
            document.add_paragraph()
        elif kind == "figure":
            document.add_picture(io.BytesIO(picture_of(value[0])), width=Pt(430))
            caption = document.add_paragraph(value[1], style="Caption")
            caption.alignment = WD_ALIGN_PARAGRAPH.CENTER
        elif kind == "subtitle":
            document.add_paragraph(value, style="Subtitle")
        elif kind == "text":
            document.add_paragraph(value)
        else:
            document.add_heading(value, level={"title": 0, "h2": 1, "h3": 2}[kind])
    properties = document.core_properties
    properties.title = "Orrin Skerry Tidal Kelp-Drying Station: Operating Handbook"
    properties.author = properties.last_modified_by = "The station office at Haldane Slip"
    properties.created = properties.modified = FIXED_DATE
    properties.revision = 7
    buffer = io.BytesIO()
    document.save(buffer)
    return same_dates(buffer.getvalue())


def same_dates(archive: bytes) -> bytes:
    """The same zip archive with every member dated alike, so that a rebuild gives equal bytes."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            member = zipfile.ZipInfo(name, date_time=FIXED_DATE.timetuple()[:6])
            new.writestr(member, old.read(name), zipfile.ZIP_DEFLATED, 9)
    return result.getvalue()


def scanned(image: Image.Image, degrees: float, noise: np.random.Generator) -> bytes:
    """The page as an office scanner would hand it over: crooked, grainy, grey, JPEG."""
    grey = image.convert("L").rotate(
        degrees, resample=Image.Resampling.BICUBIC, fillcolor=255, expand=False
    )
    values = np.asarray(grey, dtype=np.float32) * 0.93 + 14.0
    values += noise.normal(0.0, 4.0, values.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=52)
    return buffer.getvalue()


def make_scan(pdf: bytes) -> bytes:
    source = pypdfium2.PdfDocument(pdf)
    noise = np.random.default_rng(7)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.setTitle("Scan")
    for number, degrees in zip(SCANNED_PAGES, (0.5, -0.35, 0.2), strict=True):
        image = source[number - 1].render(scale=SCAN_DPI / 72, grayscale=True).to_pil()
        jpeg = io.BytesIO(scanned(image, degrees, noise))
        canvas.drawImage(ImageReader(jpeg), 0, 0, *A4)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def main() -> None:
    rl_config.useA85 = 0  # streams as plain bytes: a quarter smaller than as ASCII
    content = list(blocks((FOLDER / "handbook.md").read_text("utf-8")))
    pdf = make_pdf(content)
    files = {
        "handbook.pdf": pdf,
        "handbook.docx": make_docx(content),
        "handbook-scan.pdf": make_scan(pdf),
    }
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
