"""Read HTML: what a reader of the page would read, in order, without what stands around it.

In: bytes of a page. Out: its title and blocks of text: headings, paragraphs, lists and tables
(`cell | cell`). lxml does the parsing, whatever the markup is like. Scripts, styles, forms,
navigation, page footers and what is hidden are left out; where the page marks its main part,
only that is read. Runs nothing, loads nothing that the page refers to. Knows no chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lxml import etree
from lxml import html as parser

from potstill.ingest.cleaning import one_line
from potstill.ingest.content import PageText, Reading, UnusableError
from potstill.ingest.encodings import decode

DROPPED = frozenset(
    "script style noscript template nav head svg iframe object embed applet canvas audio video map "
    "form button input select textarea dialog menu datalist progress meter rp".split()
)
BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption "
    "figure footer h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main ol p pre search section "
    "summary table tbody td tfoot th thead tr ul".split()
)
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
AROUND = frozenset({"navigation", "banner", "contentinfo", "search", "complementary", "menu"})
WITHIN = frozenset({"article", "section", "main", "blockquote"})
LISTS = frozenset({"ul", "ol"})
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]+)")
XML_LINE = re.compile(r"^\s*<\?xml.*?\?>", re.DOTALL)
HEAD = 4096
MOST_DEPTH = 200
LONGEST_TITLE = 150


def read_html(path: Path) -> Reading:
    """The text of an HTML file. Errors: UnusableError with the reason damaged_html or no_text."""
    title, blocks = page_text(path.read_bytes())
    if not blocks:
        raise UnusableError("no_text", "the page holds no text besides scripts and navigation")
    return Reading(title, [PageText(0, blocks)])


def page_text(data: bytes) -> tuple[str, list[str]]:
    """(title, blocks) of a page. Errors: UnusableError with the reason damaged_html."""
    declared = CHARSET.search(data[:HEAD]) or XML_ENCODING.search(data[:HEAD])
    text = XML_LINE.sub("", decode(data, declared[1].decode("ascii") if declared else ""))
    if not text.strip():
        return "", []
    try:
        tree = parser.document_fromstring(text.replace("\0", ""))
    except (etree.LxmlError, ValueError) as error:
        raise UnusableError("damaged_html", f"the page cannot be parsed: {error}") from error
    mains = [*tree.iter("main")] or tree.xpath('//*[@role="main"]')
    root = mains[0] if len(mains) == 1 else tree
    walk = _Walk()
    walk.enter(root, 0)
    walk.end()
    title = tree.find(".//title")
    words = one_line("".join(title.itertext())) if title is not None else ""
    heading = next(iter(tree.iter("h1")), None)
    if not words and heading is not None:
        words = one_line("".join(heading.itertext()))
    return words[:LONGEST_TITLE], walk.blocks


def _visible(element: Any) -> bool:
    if not isinstance(element.tag, str) or element.tag in DROPPED:  # comments have no name
        return False
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return False
    if element.get("role") in AROUND or HIDDEN.search(element.get("style") or ""):
        return False
    around = element.tag == "footer" and not any(one.tag in WITHIN for one in _above(element))
    return not around


def _above(element: Any) -> Iterator[Any]:
    yield from element.iterancestors()


class _Walk:
    """Goes through the tree and gathers inline text until a block element ends it."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._words: list[str] = []

    def end(self) -> None:
        """The paragraph that was being gathered is whole."""
        text = one_line("".join(self._words))
        self._words = []
        if text:
            self.blocks.append(text)

    def enter(self, element: Any, depth: int) -> None:
        if not _visible(element):
            return
        if depth > MOST_DEPTH:  # nobody writes this by hand: take the words, leave the shape
            self._words.append(" ".join(element.itertext()))
            return
        tag = element.tag
        if tag == "table":
            self._whole("\n".join(_rows(element, depth)))
        elif tag in LISTS:
            self._whole("\n".join(_items(element, depth, 0)))
        elif tag == "pre":
            lines = "".join(_visible_text(element)).replace("\r\n", "\n").split("\n")
            self._whole("\n".join(line.rstrip() for line in lines).strip("\n"))
        elif tag == "br":
            self._words.append(" ")
        elif tag == "math":
            self._words.append(element.get("alttext") or " ".join(element.itertext()))
        else:
            self._inside(element, depth)

    def _inside(self, element: Any, depth: int) -> None:
        block = element.tag in BLOCKS
        if block:
            self.end()
        self._words.append(element.text or "")
        for child in element:
            self.enter(child, depth + 1)
            self._words.append(child.tail or "")
        if block:
            self.end()

    def _whole(self, text: str) -> None:
        self.end()
        if text.strip():
            self.blocks.append(text)


def _line(element: Any, depth: int) -> str:
    """All that an element says, on one line."""
    walk = _Walk()
    walk._inside(element, depth)
    walk.end()
    return one_line(" ".join(walk.blocks))


def _visible_text(element: Any) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if _visible(child):
            yield "\n" if child.tag == "br" else ""
            yield from _visible_text(child)
        yield child.tail or ""


def _rows(table: Any, depth: int) -> Iterator[str]:
    """A caption, then the rows as `cell | cell`; a cell's own table goes on its one line."""
    for element in table.iter("caption", "tr"):
        if next(element.iterancestors("table")) is not table or not _visible(element):
            continue
        if element.tag == "caption":
            if text := _line(element, depth + 1):
                yield text
            continue
        cells = [_line(cell, depth + 1) for cell in element if cell.tag in ("td", "th")]
        if any(cells):
            yield " | ".join(cells)


def _items(items: Any, depth: int, level: int) -> Iterator[str]:
    """One line an item; what is listed below an item is indented."""
    number = _start(items)
    for item in items:
        if not _visible(item):
            continue
        if item.tag in LISTS:  # wrong, but common
            yield from _items(item, depth + 1, level + 1)
            continue
        inner = [child for child in item if child.tag in LISTS and _visible(child)]
        for child in inner:
            item.append(_text_element(f" {child.tail or ''}"))
            item.remove(child)
        mark = f"{number}." if items.tag == "ol" else "-"
        if text := _line(item, depth + 1):
            yield f"{'  ' * level}{mark} {text}"
            number += 1
        if depth + 1 < MOST_DEPTH:
            for child in inner:
                yield from _items(child, depth + 1, level + 1)


def _start(items: Any) -> int:
    start = items.get("start") or ""
    return int(start) if re.fullmatch(r"\d{1,6}", start) else 1


def _text_element(text: str) -> Any:
    element = parser.Element("span")
    element.text = text
    return element
