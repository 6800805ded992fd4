"""Files of the newer kinds, made in the test: web pages, books, slides, pictures, tables."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from pptx import Presentation
from pptx.util import Inches

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)
OPF = (
    '<package xmlns="http://www.idpf.org/2007/opf"><metadata '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The still</dc:title></metadata>'
    '<manifest><item id="b" href="two.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="a" href="text/one%20.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    '<item id="p" href="p.png" media-type="image/png"/></manifest>'
    '<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>'
)
PARTS = {
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": OPF,
    "OEBPS/text/one .xhtml": "<html><body><h1>One</h1><p>Copper is hot.</p></body></html>",
    "OEBPS/two.xhtml": "<?xml version='1.0' encoding='utf-8'?><html><p>Größe</p></html>",
    "OEBPS/nav.xhtml": "<html><body><ol><li>One</li></ol></body></html>",
}


def archive(members: dict[str, str | bytes]) -> bytes:
    """A zip file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return buffer.getvalue()


def epub(**changed: str | bytes) -> bytes:
    """A book of two parts and a contents list; members by name with `__` for `/` replaced."""
    return archive({**PARTS, **{name.replace("__", "/"): data for name, data in changed.items()}})


def pptx(*texts: str, title: str = "Slide one") -> bytes:
    """A presentation with a list, a table, notes, and a second slide with one text box."""
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = title
    body = slide.placeholders[1].text_frame
    body.text = texts[0] if texts else "First point"
    for text in texts[1:]:
        line = body.add_paragraph()
        line.text, line.level = text, 1
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(3), Inches(4), Inches(1)).table
    for place, text in enumerate(("Code", "Meaning", "H12", "low\nwater")):
        table.cell(place // 2, place % 2).text = text
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    second = presentation.slides.add_slide(presentation.slide_layouts[6])
    box = second.shapes.add_textbox(Inches(1), Inches(1), Inches(4), Inches(1))
    box.text_frame.text = "The second slide."
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def repacked(package: bytes, **members: bytes) -> bytes:
    """The zip package with members added or replaced (`__` stands for `/`)."""
    with zipfile.ZipFile(io.BytesIO(package)) as old:
        content: dict[str, str | bytes] = {name: old.read(name) for name in old.namelist()}
    return archive({**content, **{name.replace("__", "/"): one for name, one in members.items()}})


def with_macros(package: bytes, main: str) -> bytes:
    """An Office package that carries macros; `main`: word or ppt."""
    kinds = {"word": "vnd.ms-word.document", "ppt": "vnd.ms-powerpoint.presentation"}
    plain = {
        "word": "vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
        "ppt": "vnd.openxmlformats-officedocument.presentationml.presentation.main+xml",
    }
    with zipfile.ZipFile(io.BytesIO(package)) as old:
        types = old.read("[Content_Types].xml").decode()
    types = types.replace(plain[main], f"{kinds[main]}.macroEnabled.main+xml")
    return repacked(
        package,
        **{"[Content_Types].xml": types.encode(), f"{main}__vbaProject.bin": b"Shell evil"},
    )


def locked(package: bytes) -> bytes:
    """The zip package with every member marked as encrypted."""
    data = bytearray(package)
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 4)
    return bytes(data)


def page_picture(*lines: str) -> Image.Image:
    """A page with these lines of large type."""
    image = Image.new("RGB", (1240, 120 * len(lines) + 120), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=48)
    for number, line in enumerate(lines):
        draw.text((80, 80 + 120 * number), line, fill="black", font=font)
    return image


def squad(*, version: str = "v2.0") -> dict[str, Any]:
    """Two articles; the second question of the first has no answer in v2.0."""
    dried = "Kelp dries in 12 h. It is sold in 12 h more."
    return {
        "version": version,
        "data": [
            {
                "title": "Kelp",
                "paragraphs": [
                    {
                        "context": dried,
                        "qas": [
                            {
                                "id": "k1",
                                "question": "How long until it is sold?",
                                "answers": [
                                    {"text": "12 h", "answer_start": 34},
                                    {"text": "12 h more", "answer_start": 34},
                                ],
                                "is_impossible": False,
                            },
                            {
                                "id": "k2",
                                "question": "Who sells it?",
                                "answers": [],
                                "is_impossible": True,
                            },
                        ],
                    }
                ],
            },
            {
                "title": "Kelp",
                "paragraphs": [
                    {
                        "context": "Copper is hot.",
                        "qas": [
                            {
                                "id": "c1",
                                "question": "What is hot?",
                                "answers": [{"text": "Copper", "answer_start": 0}],
                            }
                        ],
                    }
                ],
            },
        ],
    }


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
