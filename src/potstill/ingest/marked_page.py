"""Draws the page of a PDF on which a sentence stands, with the sentence and the answer marked.

    python -m potstill.ingest.marked_page < {"path", "pages", "sentence", "answer", "whole"}

In: a file that ingest has read, the numbers of pages to look on, words. Out: a PNG, of the part of
the page around the words unless the whole is asked for, and the page's number. PDFium parses what
others wrote, so `marked_page` runs it in a process of its own, which may crash or hang alone. A
page without a text layer is shown as it is. Knows no row.
"""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from potstill.errors import InputError

WIDTH, TALLEST = 1100, 4400
"""Pixels of a page's width; a page that would be taller is drawn smaller: a PDF may name any size,
and a picture of it would take all memory."""
AROUND = 130
"""Points above and below the words that are shown with them."""
SECONDS = 20.0
MARKS = ((255, 214, 0, 90), (255, 150, 0, 110))
"""Colours with their opacity of 255: of the sentence, of the answer."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn. pages: as a reader counts them, from 1; the first on which the sentence
    is found is drawn, else the first."""

    path: str
    pages: tuple[int, ...]
    sentence: str
    answer: str
    whole: bool = False


def marked_page(wanted: Wanted) -> bytes:
    """The PNG. Errors: InputError if the page cannot be drawn."""
    command = [sys.executable, "-m", "potstill.ingest.marked_page"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(wanted)).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError("This page takes too long to draw.") from None
    if done.returncode or not done.stdout.startswith(b"\x89PNG"):
        raise InputError("This page cannot be drawn.")
    return done.stdout


def draw(wanted: Wanted) -> bytes:
    """The PNG, drawn in this process."""
    import pypdfium2

    with closing(pypdfium2.PdfDocument(wanted.path)) as document:
        there = [number for number in wanted.pages if 1 <= number <= len(document)] or [1]
        for number in there:
            page = document[number - 1]
            if sentence := boxes_of(page, wanted.sentence):
                break
        else:
            page = document[there[0] - 1]
        answer = boxes_of(page, wanted.answer, inside=sentence)
        for boxes, colour in zip((sentence, answer), MARKS, strict=True):
            for box in boxes:
                _mark(page, box, colour)
        scale = min(WIDTH / page.get_width(), TALLEST / page.get_height())
        bitmap = page.render(scale=scale)
        picture = bitmap.to_pil().convert("RGB")
        if sentence and not wanted.whole:
            place = bitmap.get_posconv(page)
            picture = picture.crop(_around(place, sentence, picture.size, AROUND * scale))
        held = io.BytesIO()
        picture.save(held, "PNG", optimize=False)
        return held.getvalue()


def boxes_of(page: Any, words: str, inside: Sequence[Box] = ()) -> list[Box]:
    """Where words stand on a page, in its points (left, bottom, right, top), a box a line or less.
    Letters and digits alone are compared: a PDF breaks and joins words elsewhere than its text.
    inside: boxes of which the words' must touch one, where they stand in several places."""
    with closing(page.get_textpage()) as text:
        letters, places = _letters(text.get_text_range())
        looked_for, _ = _letters(words)
        start = letters.find(looked_for) if looked_for else -1
        while start >= 0:
            first, last = places[start], places[start + len(looked_for) - 1]
            count = text.count_rects(first, last - first + 1)
            boxes = [text.get_rect(number) for number in range(count)]
            if not inside or any(_touch(box, one) for box in boxes for one in inside):
                return boxes
            start = letters.find(looked_for, start + 1)
    return []


def _letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text, folded, and for each the place it stands at."""
    kept = [
        (folded, place)
        for place, character in enumerate(text)
        for folded in character.casefold()
        if folded.isalnum()
    ]
    return "".join(one for one, _ in kept), [place for _, place in kept]


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(page: Any, box: Box, colour: tuple[int, int, int, int]) -> None:
    """Lay a colour over a box, as a text marker does."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    left, bottom, right, top = box
    rectangle = pdfium.FPDFPageObj_CreateNewRect(
        left - 1, bottom - 1, right - left + 2, top - bottom + 2
    )
    pdfium.FPDFPageObj_SetFillColor(rectangle, *colour)
    pdfium.FPDFPath_SetDrawMode(rectangle, pdfium.FPDF_FILLMODE_WINDING, False)
    pdfium.FPDFPageObj_SetBlendMode(rectangle, ctypes.create_string_buffer(b"Multiply"))
    page.insert_obj(pypdfium2.PdfObject(rectangle, pdf=page.pdf))


def _around(
    place: Any, boxes: Sequence[Box], size: tuple[int, int], margin: float
) -> tuple[int, int, int, int]:
    """The part of the picture around boxes: whole lines, so the page's whole width."""
    corners = [place.to_bitmap(*corner) for box in boxes for corner in (box[:2], box[2:])]
    top = max(0, int(min(y for _, y in corners) - margin))
    bottom = min(size[1], int(max(y for _, y in corners) + margin))
    return 0, top, size[0], bottom


def main() -> None:
    """Draw what standard input says, to standard output."""
    said = json.load(sys.stdin)
    sys.stdout.buffer.write(draw(Wanted(**said | {"pages": tuple(said["pages"])})))


if __name__ == "__main__":
    main()
