"""What a reader hands on: pages of text blocks, and why a file or a page cannot be used.

In: nothing. Out: plain types shared by the readers, the layout and the stage. Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MACROS = "carries macros; only its text is read, and no macro is run"
Method = Literal["text", "ocr"]
OnPage = Callable[[int, int], None]
"""Called with (pages done, pages in all)."""


class UnusableError(Exception):
    """A file or a page cannot be used. `reason` is a short stable word, `detail` one line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class Fragment:
    """A run of text on one line. Points from the page's top left corner, y downwards."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(slots=True)
class PagePicture:
    """A page as the PDF reader or the OCR saw it: fragments that are not yet in reading order."""

    number: int
    width: float
    height: float
    fragments: list[Fragment]
    method: Method = "text"
    sideways: list[Fragment] = field(default_factory=list)
    """Text that stands across the page, such as a stamp in the margin, each in its own frame."""


@dataclass(slots=True)
class PageText:
    """A page's text in reading order. Number 0: the format has no pages."""

    number: int
    blocks: list[str]
    method: Method = "text"


@dataclass(slots=True)
class Reading:
    """What a reader got out of a file."""

    title: str
    pages: list[PageText]
    lost_pages: list[tuple[int, UnusableError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know of the file besides, each a whole sentence's end."""
