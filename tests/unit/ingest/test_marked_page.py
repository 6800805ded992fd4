"""The page of a PDF with a sentence marked: the right page, the right place, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from potstill.errors import InputError
from potstill.ingest import marked_page as module
from potstill.ingest.marked_page import TALLEST, WIDTH, Wanted, draw, marked_page
from potstill.sample import sample_path

TOP, LINE = 700, 16
FIRST = ["The kelp dries for nine hours.", "Tove grades it.", "The key hangs in the hall."]
SECOND = [
    "The warden is called Tove. The tide bell is",
    "rung by the warden at dusk.",
    "Tove rests.",
]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "handbook.pdf"
    canvas = Canvas(str(path), pagesize=A4)
    for lines in (FIRST, SECOND):
        for number, line in enumerate(lines):
            canvas.drawString(72, TOP - LINE * number, line)
        canvas.showPage()
    canvas.save()
    return path


def coloured(png: bytes) -> list[tuple[int, int]]:
    """Where a picture is neither white, grey nor black."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    pixels: Any = picture.load()
    return [
        (x, y)
        for x in range(picture.width)
        for y in range(picture.height)
        if max(pixels[x, y]) - min(pixels[x, y]) > 60
    ]


def lines_of(marks: list[tuple[int, int]], height: int) -> set[int]:
    """The lines of the page that marks lie on, 0 being the first."""
    scale = WIDTH / A4[0]
    return {round((TOP + 4 - (A4[1] - y / scale)) / LINE) for _, y in marks}


def test_the_sentence_is_marked_on_the_page_where_it_stands(document: Path) -> None:
    sentence = "The tide bell is\nrung by the warden at dusk."
    whole = draw(Wanted(str(document), (1, 2), sentence, "the warden", whole=True))
    picture = Image.open(io.BytesIO(whole))
    assert picture.size == (WIDTH, round(WIDTH * A4[1] / A4[0]))
    marks = coloured(whole)
    assert lines_of(marks, picture.height) == {0, 1}
    # The first line is marked from the sentence's beginning on, not where another one stands.
    first = [x for x, y in marks if lines_of([(x, y)], picture.height) == {0}]
    assert min(first) > (72 + 120) * WIDTH / A4[0]
    part = draw(Wanted(str(document), (1, 2), sentence, "the warden"))
    cropped = Image.open(io.BytesIO(part))
    assert cropped.width == WIDTH
    assert cropped.height < picture.height / 2
    assert len(coloured(part)) == len(marks)


def test_the_answer_is_marked_within_its_sentence_alone(document: Path) -> None:
    wanted = Wanted(str(document), (2,), "Tove rests.", "Tove", whole=True)
    marks = coloured(draw(wanted))
    assert lines_of(marks, 0) == {2}  # and not on the first line, where the name stands too
    bare = coloured(draw(Wanted(str(document), (2,), "Tove rests.", "", whole=True)))
    corners = [
        [min(side), max(side)] for found in (marks, bare) for side in zip(*found, strict=True)
    ]
    assert corners[:2] == [pytest.approx(one, abs=4) for one in corners[2:]]  # it lies within


@pytest.mark.parametrize(
    ("words", "pages"), [("It is nowhere.", (2,)), ("", (2,)), ("...", (2,)), ("Tove", ())]
)
def test_words_that_are_not_found_leave_the_whole_page_as_it_is(
    document: Path, words: str, pages: tuple[int, ...]
) -> None:
    png = draw(Wanted(str(document), pages, words if pages else "", ""))
    assert Image.open(io.BytesIO(png)).height == round(WIDTH * A4[1] / A4[0])
    assert coloured(png) == []


def test_the_sample_is_drawn_by_a_process_of_its_own() -> None:
    sentence = "Petrel 38 m 54 58 °C 3.4 m/s 6 h 45 min"
    png = marked_page(Wanted(str(sample_path("handbook.pdf")), (2, 3), sentence, "58 °C"))
    assert coloured(png)


@pytest.mark.parametrize("size", [(3, 14_000), (14_000, 3), (14_000, 14_000)])
def test_a_page_of_any_size_is_a_picture_of_bounded_size(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "odd.pdf"
    canvas = Canvas(str(path), pagesize=size)
    canvas.drawString(0, size[1] / 2, "Tove rests.")
    canvas.save()
    picture = Image.open(io.BytesIO(draw(Wanted(str(path), (1,), "", "", whole=True))))
    assert picture.width <= WIDTH + 1
    assert picture.height <= TALLEST + 1


def test_what_cannot_be_drawn_is_one_clear_error(
    tmp_path: Path, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 no more")
    with pytest.raises(InputError, match="cannot be drawn"):
        marked_page(Wanted(str(broken), (1,), "x", "x"))
    monkeypatch.setattr(module, "SECONDS", 0.01)
    with pytest.raises(InputError, match="too long"):
        marked_page(Wanted(str(document), (1,), "x", "x"))
