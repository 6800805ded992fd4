"""Read a picture file by OCR: PNG, JPEG, TIFF (each of its pages), WebP, BMP.

In: a path. Out: a `Reading`, a page a frame. Pillow decodes; a picture whose header promises more
pixels than Pillow's own limit is refused before a pixel is unpacked. Knows no OCR engine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from potstill.ingest.content import Fragment, OnPage, PagePicture, PageText, Reading, UnusableError
from potstill.ingest.layout import page_texts

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
POINTS_PER_INCH = 72.0
SCANNED = 1500
"""A picture with a side of so many pixels and no resolution of its own is taken for an A4 page."""
A4_INCHES, SCREEN_DPI = 11.7, 96.0
SANE_DPI, SANE_INCHES = (100.0, 1300.0), (2.0, 50.0)

SeePage = Callable[[Any, int], list[Fragment]]


class Frame:
    """One picture, with what the OCR asks of a page: its size in points, and to be drawn.

    The same two questions as pypdfium2 pages answer.
    """

    def __init__(self, image: Image.Image, dpi: float) -> None:
        self.image, self.dpi = image, dpi

    def get_size(self) -> tuple[float, float]:
        """Width and height in points."""
        width, height = self.image.size
        return width * POINTS_PER_INCH / self.dpi, height * POINTS_PER_INCH / self.dpi

    def render(self, scale: float, maybe_alpha: bool) -> Frame:
        """The picture at `scale` pixels a point."""
        width, height = (max(1, round(side * scale)) for side in self.get_size())
        return Frame(self.image.resize((width, height), Image.Resampling.LANCZOS), self.dpi)

    def to_numpy(self) -> NDArray[np.uint8]:
        """Height x width x 3, BGR."""
        return np.ascontiguousarray(np.asarray(self.image)[:, :, ::-1])


def read_picture(path: Path, ocr: str, max_pages: int, see: SeePage, on_page: OnPage) -> Reading:
    """The text in a picture file. `see(frame, number)` recognises a frame.

    Errors: UnusableError with the reason image_bomb, damaged_picture, too_many_pages,
    page_needs_ocr or no_text.
    """
    if ocr == "never":
        raise UnusableError("page_needs_ocr", "the file is a picture, and ingest.ocr is never")
    pictures: list[PagePicture] = []
    lost: list[tuple[int, UnusableError]] = []
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        if frames > max_pages:
            raise UnusableError(
                "too_many_pages",
                f"the picture has {frames:,} pages, and ingest.max_pages allows {max_pages:,}",
            )
        for index in range(frames):
            try:
                frame = _frame(image, index)
                width, height = frame.get_size()
                seen = see(frame, index + 1)
            except UnusableError as problem:
                if frames == 1:
                    raise
                lost.append((index + 1, problem))
            else:
                pictures.append(PagePicture(index + 1, width, height, seen, "ocr"))
            on_page(index + 1, frames)
    pages: list[PageText] = page_texts(pictures)[0]
    if not any(page.blocks for page in pages):
        raise lost[0][1] if lost else UnusableError("no_text", "no text is seen in the picture")
    return Reading("", pages, lost)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _trouble(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    with image:
        yield image


def _frame(image: Image.Image, index: int) -> Frame:
    """One frame, upright, in colours that the OCR knows; white where it was transparent."""
    with _trouble(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image.seek(index)
        _check_size(image)
        dpi = _resolution(image)
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            clear = upright.convert("RGBA")
            upright = Image.new("RGBA", clear.size, "white")
            upright.alpha_composite(clear)
        if upright.mode.startswith("I;16") or upright.mode == "I":  # 16 bits of grey
            grey = np.asarray(upright).astype(np.uint32) >> 8
            upright = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        return Frame(upright.convert("RGB"), dpi)


@contextmanager
def _trouble() -> Iterator[None]:
    """What a bad picture makes Pillow raise, as one reason."""
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _bomb() from error
    except UnusableError:
        raise
    except Exception as error:  # struct.error, SyntaxError, zlib.error, ... by format
        raise UnusableError(
            "damaged_picture", f"the picture is damaged ({type(error).__name__})"
        ) from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise _bomb()


def _bomb() -> UnusableError:
    most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return UnusableError(
        "image_bomb", f"the picture has more than {most:.0f} million pixels, which is refused"
    )


def _resolution(image: Image.Image) -> float:
    """Dots per inch: as the file says if that can be, else by what such a picture mostly is."""
    longest = max(image.size)
    try:
        said = float(image.info.get("dpi", (0.0, 0.0))[0])
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        said = 0.0
    if SANE_DPI[0] <= said <= SANE_DPI[1] and SANE_INCHES[0] <= longest / said <= SANE_INCHES[1]:
        return said
    return longest / A4_INCHES if longest >= SCANNED else SCREEN_DPI
