"""Read a PDF page by page: its text layer where that is sound, else the page's picture by OCR.

In: a path and the limits. Out: a `Reading`; a file or page that cannot be used raises or is noted
as `UnusableError` with its reason. pypdfium2 does the parsing and the drawing. Knows no chunks.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from potstill.ingest.cleaning import one_line
from potstill.ingest.content import Fragment, OnPage, PagePicture, Reading, UnusableError
from potstill.ingest.layout import page_texts

SeePage = Callable[[Any, int], list[Fragment]]
"""Draws and recognises a page: (pypdfium2 page, its number) -> fragments."""

TAIL = 64 * 1024
LINEARIZED = re.compile(rb"/Linearized\b[^>]*?/L\s+(\d+)")
FEW_LETTERS = 25
"""A page with fewer letters than this and a page-wide picture is a scan with a stamp on it."""
MOST_BROKEN = 0.15
"""A text layer with more unreadable characters than this was made without a character map."""
WIDE_PICTURE = 0.5
CELL_GAP = 1.2
"""A gap wider than this many line heights parts two cells or columns, not two words."""
JUNK_TITLE = re.compile(
    r"^(untitled|title|scan\w*|document\d*|microsoft word.*|.*\.(docx?|pdf|tex|indd|dvi))$",
    re.IGNORECASE,
)


def read_pdf(path: Path, ocr: str, max_pages: int, see: SeePage, on_page: OnPage) -> Reading:
    """The text of a PDF file. `ocr` is auto, always or never; `see` is called where it is needed.

    Errors: UnusableError with the reason encrypted_pdf, truncated_pdf, damaged_pdf, too_many_pages,
    empty_pdf or no_text.
    """
    _check_end(path)
    with closing(_open(path)) as document:
        count = len(document)
        if count == 0:
            raise UnusableError("empty_pdf", "the PDF has no pages")
        if count > max_pages:
            raise UnusableError(
                "too_many_pages",
                f"the PDF has {count:,} pages, and ingest.max_pages allows {max_pages:,}; "
                "split the file or raise the limit",
            )
        pictures: list[PagePicture] = []
        lost: list[tuple[int, UnusableError]] = []
        for index in range(count):
            try:
                pictures.append(_page(document, index, ocr, see))
            except UnusableError as problem:
                lost.append((index + 1, problem))
            on_page(index + 1, count)
        title = one_line(document.get_metadata_value("Title") or "")
    pages, _ = page_texts(pictures)
    if not any(page.blocks for page in pages):
        raise lost[0][1] if lost else UnusableError("no_text", "no page holds any text")
    return Reading("" if JUNK_TITLE.match(title) else title, pages, lost)


def _open(path: Path) -> Any:
    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise UnusableError(
                "encrypted_pdf", "the PDF is locked with a password; save a copy without one"
            ) from None
        if error.err_code == pdfium.FPDF_ERR_SECURITY:
            raise UnusableError(
                "encrypted_pdf", "the PDF is encrypted in a way that cannot be read"
            ) from None
        raise UnusableError(
            "damaged_pdf", "the PDF is damaged and cannot be opened; download or export it again"
        ) from None


def _check_end(path: Path) -> None:
    """Refuse a file that was cut off: PDFium would repair it and lose pages without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2048)
        file.seek(max(0, size - TAIL))
        tail = file.read()
    linear = LINEARIZED.search(head)
    cut_off = (linear is not None and int(linear[1]) > size) or b"%%EOF" not in tail
    if cut_off:
        raise UnusableError(
            "truncated_pdf",
            "the PDF breaks off before its end; download or copy it again",
        )


def _page(document: Any, index: int, ocr: str, see: SeePage) -> PagePicture:
    """One page's fragments, from the better of its text layer and its picture."""
    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        raise UnusableError("damaged_page", f"page {index + 1} is damaged") from None
    with closing(page):
        found = [] if ocr == "always" else text_layer(page)
        if ocr == "never" or (ocr == "auto" and _sound(found, page)):
            if not found and _painted(page):
                raise UnusableError(
                    "page_needs_ocr",
                    f"page {index + 1} is a picture without text, and ingest.ocr is never",
                )
            return _upright(index + 1, found, page.get_mediabox())
        width, height = page.get_size()
        seen = see(page, index + 1) if _painted(page) else []
        return PagePicture(index + 1, width, height, seen, "ocr")


def _sound(found: list[tuple[int, Fragment]], page: Any) -> bool:
    """Whether the text layer says what the page shows."""
    text = "".join(fragment.text for _, fragment in found)
    visible = [character for character in text if not character.isspace()]
    letters = sum(character.isalnum() for character in visible)
    if letters == 0:
        return False
    broken = sum(_unreadable(character) for character in visible)
    if broken > MOST_BROKEN * len(visible):
        return False
    return letters >= FEW_LETTERS or not _is_picture(page)


def _unreadable(character: str) -> bool:
    code = ord(character)
    return code == 0xFFFD or 0xE000 <= code <= 0xF8FF or code < 32 or 0x7F <= code < 0xA0


def _painted(page: Any) -> bool:
    """Whether anything at all is drawn on the page."""
    return next(iter(page.get_objects(max_depth=1)), None) is not None


def _is_picture(page: Any) -> bool:
    """Whether a picture covers most of the page."""
    width, height = page.get_size()
    if page.get_rotation() in (90, 270):
        width, height = height, width
    for item in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        left, bottom, right, top = item.get_bounds()
        if (right - left) * (top - bottom) > WIDE_PICTURE * width * height:
            return True
    return False


# --- the text layer -------------------------------------------------------------------------------


def text_layer(page: Any) -> list[tuple[int, Fragment]]:
    """The page's text as (quarter turns, fragment); each in the frame in which it is upright."""
    builder = _Lines()
    with closing(page.get_textpage()) as textpage:
        for character in _characters(textpage):
            builder.add(*character)
    builder.end()
    return builder.done


def _characters(textpage: Any) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    """(character, quarter turns, (left, top, right, bottom) in PDF coordinates, y upwards).

    A hyphen that PDFium took for a break of a word comes as "-" and a line end, so that the
    document's own words can decide about it. A line end comes as "\\n".
    """
    box = pdfium.FS_RECTF()
    box_reference = ctypes.byref(box)
    handle = textpage.raw  # the innermost loop of all: what can be looked up before it, is
    code_of, box_of = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetLooseCharBox
    angle_of = pdfium.FPDFText_GetCharAngle
    pending = 0
    for index in range(textpage.count_chars()):
        code = code_of(handle, index)
        if 0xD800 <= code < 0xDC00:  # first half of a character beyond the basic plane
            pending = code
            continue
        if 0xDC00 <= code < 0xE000 and pending:
            code = 0x10000 + ((pending - 0xD800) << 10) + (code - 0xDC00)
        pending = 0
        if code in (0, 10):
            continue
        box_of(handle, index, box_reference)
        place = (box.left, box.top, box.right, box.bottom)
        angle = angle_of(handle, index)
        turns = round(angle / 1.5707963267948966) % 4 if angle > 0 else 0
        if code == 13:
            yield "\n", turns, place
        elif code in (2, 0xFFFE) and pdfium.FPDFText_IsHyphen(handle, index) == 1:
            yield "-", turns, place
            yield "\n", turns, place
        else:
            yield chr(code), turns, place


class _Lines:
    """Gathers characters into fragments; a new one begins at a line end, a jump or a wide gap."""

    def __init__(self) -> None:
        self.done: list[tuple[int, Fragment]] = []
        self._text: list[str] = []
        self._turns = 0
        self._box = (0.0, 0.0, 0.0, 0.0)

    def add(self, character: str, turns: int, place: tuple[float, float, float, float]) -> None:
        if character == "\n":
            self.end()
            return
        if character.isspace():
            if self._text:
                self._text.append(" ")
            return
        box = _turned(place, turns)
        if self._text and (turns != self._turns or self._jumps(box)):
            self.end()
        if not self._text:
            self._turns, self._box = turns, box
        else:
            left, top, right, bottom = self._box
            self._box = (min(left, box[0]), top, max(right, box[2]), bottom)
        self._text.append(character)

    def _jumps(self, box: tuple[float, float, float, float]) -> bool:
        _, top, right, bottom = self._box
        height = max(bottom - top, box[3] - box[1], 1.0)
        middle = (box[1] + box[3]) / 2
        off_line = not top - 0.25 * height <= middle <= bottom + 0.25 * height
        return off_line or box[0] > right + CELL_GAP * height or box[2] < right - 2 * height

    def end(self) -> None:
        text = "".join(self._text).strip()
        if text:
            self.done.append((self._turns, Fragment(text, *self._box)))
        self._text = []


def _turned(
    place: tuple[float, float, float, float], turns: int
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), y downwards, in the frame in which the text reads left to right.

    `turns`: quarter turns clockwise by which the text stands on the page.
    """
    left, top, right, bottom = place
    if turns == 0:
        return (left, -top, right, -bottom)
    if turns == 1:
        return (-top, -right, -bottom, -left)
    if turns == 2:
        return (-right, bottom, -left, top)
    return (bottom, left, top, right)


def _upright(
    number: int, found: list[tuple[int, Fragment]], mediabox: tuple[float, float, float, float]
) -> PagePicture:
    """The page in the frame of most of its text; what stands across the page is kept apart."""
    amounts = dict.fromkeys(range(4), 0)
    for turns, fragment in found:
        amounts[turns] += len(fragment.text)
    main = max(amounts, key=lambda turns: amounts[turns])
    left, bottom, right, top = mediabox
    frame = _turned((left, top, right, bottom), main)
    along = [fragment for turns, fragment in found if turns == main]
    for fragment in along:
        fragment.left, fragment.right = fragment.left - frame[0], fragment.right - frame[0]
        fragment.top, fragment.bottom = fragment.top - frame[1], fragment.bottom - frame[1]
    across = [fragment for turns, fragment in found if turns != main]
    return PagePicture(number, frame[2] - frame[0], frame[3] - frame[1], along, sideways=across)
