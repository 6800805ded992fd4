"""Fragments with places become rows, columns, tables and paragraphs."""

from __future__ import annotations

from potstill.ingest.content import Fragment, PagePicture
from potstill.ingest.layout import page_texts

WIDTH, HEIGHT = 595.0, 842.0


def words(text: str, left: float, top: float, width: float | None = None) -> Fragment:
    """A line of 10-point text."""
    return Fragment(text, left, top, left + (width or 5.0 * len(text)), top + 11.0)


def page(number: int, *fragments: Fragment) -> PagePicture:
    return PagePicture(number, WIDTH, HEIGHT, list(fragments))


def blocks(*pictures: PagePicture) -> list[list[str]]:
    texts, _ = page_texts(pictures)
    return [text.blocks for text in texts]


def prose(count: int, left: float, top: float, word: str, chars: int = 40) -> list[Fragment]:
    line = f"{word} goes on and on and on in this column of prose"[:chars].ljust(chars, "x")
    return [words(line, left, top + 14 * row) for row in range(count)]


def test_lines_close_together_are_a_paragraph_and_a_gap_parts_them() -> None:
    top = [words("The first line of a paragraph", 60, 100 + 14 * row) for row in range(3)]
    below = [words("The other paragraph starts here", 60, 160 + 14 * row) for row in range(3)]
    (found,) = blocks(page(1, *top, *below))
    assert len(found) == 2
    assert found[0] == " ".join(["The first line of a paragraph"] * 3)


def test_a_table_keeps_its_rows_and_cells() -> None:
    cells = [
        [("Tunnel", 60), ("Length", 160), ("Racks", 260)],
        [("Bracken", 60), ("24 m", 160), ("32", 260)],
        [("Dunlin", 60), ("31 m", 160), ("42", 260)],
    ]
    fragments = [
        words(text, left, 100 + 16 * row) for row, line in enumerate(cells) for text, left in line
    ]
    (found,) = blocks(page(1, words("A sentence over the table.", 60, 70), *fragments))
    assert found == [
        "A sentence over the table.",
        "Tunnel | Length | Racks\nBracken | 24 m | 32\nDunlin | 31 m | 42",
    ]


def test_a_cell_of_two_lines_stays_one_cell_and_an_empty_cell_stays_empty() -> None:
    fragments = [
        words("Code", 60, 100), words("Meaning", 160, 100), words("Horn", 300, 100),
        words("H12", 60, 116), words("Warm end is", 160, 116), words("low", 300, 116),
        words("too hot", 160, 130),
        words("P15", 60, 146), words("long", 300, 146),
    ]  # fmt: skip
    (found,) = blocks(page(1, *fragments))
    assert found == ["Code | Meaning | Horn\nH12 | Warm end is too hot | low\nP15 |  | long"]


def test_two_columns_are_read_one_after_the_other_below_a_wide_title() -> None:
    title = words("A title that reaches over both of the columns of the page", 60, 60, 450)
    left = prose(8, 60, 100, "left")
    right = prose(8, 310, 100, "right")
    mixed = [one for pair in zip(left, right, strict=True) for one in pair]
    (found,) = blocks(page(1, title, *mixed))
    text = " ".join(found)
    assert text.index("A title") < text.index("left") < text.index("right")
    assert "right" not in text[: text.rindex("left")]


def test_running_headers_and_page_numbers_go_and_body_lines_stay() -> None:
    pictures = [
        page(
            number,
            words("Operating Handbook", 60, 30),
            words(f"Chapter text number {number * 7} is here.", 60, 300),
            words(f"Page {number}", 500, 815),
        )
        for number in range(1, 6)
    ]
    found = blocks(*pictures)
    assert found == [[f"Chapter text number {number * 7} is here."] for number in range(1, 6)]


def test_headers_that_alternate_between_left_and_right_pages_go() -> None:
    pictures = [
        page(
            number, words("The book" if number % 2 else "The part", 60, 30), words("Body.", 60, 300)
        )
        for number in range(1, 9)
    ]
    assert blocks(*pictures) == [["Body."]] * 8


def test_a_title_in_large_letters_is_not_a_running_header() -> None:
    pictures = [
        page(number, words("Handbook", 60, 30), words("Body.", 60, 300)) for number in range(1, 6)
    ]
    pictures[0].fragments[0].bottom += 12
    assert blocks(*pictures)[0] == ["Handbook", "Body."]
    assert blocks(*pictures)[1] == ["Body."]


def test_a_table_that_ends_each_page_with_numbers_is_not_a_page_number() -> None:
    pictures = [
        page(number, words("Body.", 60, 300), words(str(value), 60, 800))
        for number, value in enumerate((412, 18, 377, 5), 1)
    ]
    assert [found[-1] for found in blocks(*pictures)] == ["412", "18", "377", "5"]


def test_page_numbers_without_words_go_when_they_grow_with_the_pages() -> None:
    pictures = [
        page(number, words("Body.", 60, 300), words(str(number + 40), 300, 815))
        for number in range(1, 6)
    ]
    assert blocks(*pictures) == [["Body."]] * 5


def test_list_items_are_paragraphs_of_their_own() -> None:
    lines = ["Do this:", "1. Open the flue", "2. Run the fan", "• and wait"]
    (found,) = blocks(page(1, *[words(line, 60, 100 + 14 * row) for row, line in enumerate(lines)]))
    assert found == lines
