"""Where chunks begin and end."""

from __future__ import annotations

from potstill.ingest.chunking import chunk_spans


def count(text: str) -> int:
    return len(text.split())


def chunks(text: str, size: int, overlap: int = 0) -> list[str]:
    return [text[start:end] for start, end in chunk_spans(text, count, size, overlap)]


def test_paragraphs_stay_whole_where_they_fit() -> None:
    text = "one two three.\n\nfour five six.\n\nseven eight nine."
    assert chunks(text, 6) == ["one two three.\n\nfour five six.", "seven eight nine."]


def test_a_heading_goes_with_what_it_heads() -> None:
    text = "one two three.\n\n1. Heading\n\n1.1 Lower\n\nfour five six."
    assert chunks(text, 7) == ["one two three.", "1. Heading\n\n1.1 Lower\n\nfour five six."]


def test_a_heading_whose_paragraph_has_no_room_beside_it_is_not_lost() -> None:
    text = "one two.\n\nHeading\n\nfour five six seven."
    assert chunks(text, 4) == ["one two.\n\nHeading", "four five six seven."]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    text = "one two three. four five six. seven eight nine."
    assert chunks(text, 6) == ["one two three. four five six.", "seven eight nine."]


def test_neighbours_share_the_overlap() -> None:
    text = "\n\n".join(["a a.", "b b.", "c c.", "d d.", "e e."])
    assert chunks(text, 6, 2) == ["a a.\n\nb b.\n\nc c.", "c c.\n\nd d.\n\ne e."]


def test_a_text_that_fits_is_one_chunk_and_an_empty_one_is_none() -> None:
    assert chunks("one two", 9, 3) == ["one two"]
    assert chunks(" \n ", 9, 3) == []
