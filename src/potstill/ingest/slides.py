"""Read a PPTX file: slides are pages; titles, texts, tables and speaker notes.

In: a path. Out: a `Reading`, one page a slide, numbered as PowerPoint numbers them. python-pptx
opens the package. Pictures, charts and SmartArt drawings are not read. Knows no chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pptx import Presentation
from pptx.enum.shapes import PP_PLACEHOLDER

from potstill.ingest.archive import has_macros, opened
from potstill.ingest.cleaning import one_line
from potstill.ingest.content import MACROS, OnPage, PageText, Reading, UnusableError

MAIN_PART = "ppt/presentation.xml"
REPEATED = {
    PP_PLACEHOLDER.DATE,
    PP_PLACEHOLDER.FOOTER,
    PP_PLACEHOLDER.HEADER,
    PP_PLACEHOLDER.SLIDE_NUMBER,
}
MOST_NESTING = 50


def read_pptx(path: Path, max_pages: int, on_page: OnPage) -> Reading:
    """The text of a PowerPoint file, with macros (PPTM) or without; a macro is never run.

    Errors: UnusableError with the reason damaged_pptx, encrypted_pptx, not_pptx, too_many_pages,
    zip_bomb or no_text.
    """
    with opened(path, "PowerPoint file", "pptx") as archive:
        if MAIN_PART not in archive.namelist():
            raise UnusableError("not_pptx", "the file is a zip archive, but not a presentation")
        notes = [MACROS] if has_macros(archive) else []
    try:
        presentation = Presentation(str(path))
        slides = list(presentation.slides)
        if len(slides) > max_pages:
            raise UnusableError(
                "too_many_pages",
                f"the file has {len(slides):,} slides, and ingest.max_pages allows {max_pages:,}; "
                "split the file or raise the limit",
            )
        pages = []
        for number, slide in enumerate(slides, 1):
            pages.append(PageText(number, list(_slide(slide))))
            on_page(number, len(slides))
        title = one_line(presentation.core_properties.title or "")
    except UnusableError:
        raise
    except Exception as error:  # whatever a damaged package makes lxml or python-pptx raise
        raise UnusableError(
            "damaged_pptx",
            f"the PowerPoint file is damaged ({type(error).__name__}); open and save it again",
        ) from error
    if not any(page.blocks for page in pages):
        raise UnusableError("no_text", "no slide holds any text")
    return Reading("" if title == "PowerPoint Presentation" else title, pages, notes=notes)


def _slide(slide: Any) -> Iterator[str]:
    """The title, the other texts in their order on the slide, the speaker's notes."""
    title = slide.shapes.title
    if title is not None and (text := one_line(title.text_frame.text)):
        yield text
    yield from _shapes(slide.shapes, None if title is None else title.shape_id, 0)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = [one_line(one.text) for one in slide.notes_slide.notes_text_frame.paragraphs]
        if any(notes):
            yield f"Notes: {' '.join(text for text in notes if text)}"


def _shapes(shapes: Any, title: int | None, depth: int) -> Iterator[str]:
    for shape in shapes:
        if title is not None and shape.shape_id == title:
            continue
        if shape.is_placeholder and shape.placeholder_format.type in REPEATED:
            continue
        if hasattr(shape, "shapes"):  # a group
            if depth < MOST_NESTING:
                yield from _shapes(shape.shapes, title, depth + 1)
        elif getattr(shape, "has_table", False):
            if text := "\n".join(_rows(shape.table)):
                yield text
        elif shape.has_text_frame:
            yield from _texts(shape)


def _texts(shape: Any) -> Iterator[str]:
    """A body's paragraphs as one list; those of a text box one by one."""
    lines = [(one.level, one_line(one.text)) for one in shape.text_frame.paragraphs]
    lines = [(level, text) for level, text in lines if text]
    body = shape.is_placeholder and shape.placeholder_format.type in (
        PP_PLACEHOLDER.BODY,
        PP_PLACEHOLDER.OBJECT,
        PP_PLACEHOLDER.VERTICAL_BODY,
    )
    if body and len(lines) > 1:
        yield "\n".join(f"{'  ' * level}- {text}" for level, text in lines)
    else:
        yield from (text for _, text in lines)


def _rows(table: Any) -> Iterator[str]:
    """A table's rows as `cell | cell`; merged cells once, where they begin."""
    for row in table.rows:
        cells = [one_line(cell.text_frame.text) for cell in row.cells if not cell.is_spanned]
        if any(cells):
            yield " | ".join(cells)
