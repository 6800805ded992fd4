"""Characters, wrapped lines and pages become one clean text."""

from __future__ import annotations

import pytest

from potstill.ingest.cleaning import assemble, clean_characters, join_lines, one_line, plain_blocks
from potstill.ingest.content import PageText


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("e\ufb03cient \ufb02ow", "efficient flow"),
        ("5\u00a0mm\u2009wide", "5 mm wide"),
        ("in\u00advis\u200bible\ufeff", "invisible"),
        ("a\r\nb\rc\x0bd", "a\nb\nc\nd"),
        ("61\u2103", "61°C"),
        ("cafe\u0301", "café"),
        ("m² and ½ stay", "m² and ½ stay"),
        ("a\x00b\x07c", "abc"),
    ],
)
def test_characters_are_cleaned(dirty: str, clean: str) -> None:
    assert clean_characters(dirty) == clean


def test_one_line_has_single_spaces() -> None:
    assert one_line("  a \n\t b\u00a0 c ") == "a b c"


def test_a_word_broken_at_the_line_end_is_mended() -> None:
    assert join_lines(["the tem-", "perature is", "high"], set()) == "the temperature is high"


def test_a_hyphen_that_the_document_uses_elsewhere_stays() -> None:
    words = {"first-aid"}
    assert join_lines(["the first-", "aid box"], words) == "the first-aid box"


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        (["belt VB-", "640 fits"], "belt VB-640 fits"),
        (["Kelp-", "Drying"], "Kelp-Drying"),
        (["a range -", "wide"], "a range - wide"),
    ],
)
def test_a_hyphen_before_digits_capitals_or_a_space_is_not_dropped(
    lines: list[str], joined: str
) -> None:
    assert join_lines(lines, set()) == joined


def test_wrapped_prose_is_joined_and_laid_out_text_is_kept() -> None:
    prose = "This is the first line of a paragraph that an\neditor has wrapped at fifty columns."
    listing = "- one item of a list that is rather long, yes\n- another item of the same list"
    table = "| Name of the long column | Value of it here |\n|---|---|\n| a | b |"
    code = "```\nfirst line of some code that is quite long\n\n\nlast line\n```"
    poem = "Roses\nare red"
    text = "\n\n".join([prose, listing, table, code, poem])
    assert plain_blocks(text) == [prose.replace("\n", " "), listing, table, code, poem]


def test_pages_are_joined_where_a_paragraph_goes_on() -> None:
    first = "A sentence that is long enough to be prose begins on this page and"
    pages = [PageText(1, ["Title", first]), PageText(2, ["ends here.", "Next."])]
    text, spans = assemble(pages, set())
    assert text == f"Title\n\n{first} ends here.\n\nNext."
    assert [text[span.start : span.end] for span in spans] == [
        f"Title\n\n{first}",
        "ends here.\n\nNext.",
    ]


def test_a_word_broken_over_a_page_border_belongs_to_the_page_it_began_on() -> None:
    first = "A sentence that is long enough to be prose and that breaks a tem-"
    text, (one, two) = assemble([PageText(1, [first]), PageText(2, ["perature down."])], set())
    assert text.endswith("breaks a temperature down.")
    assert text[one.start : one.end].endswith("breaks a temperature")
    assert text[two.start : two.end] == " down."


def test_a_table_does_not_swallow_the_next_page() -> None:
    table = "Code of the alarm and its long meaning | What to do first of all"
    text, _ = assemble([PageText(1, [table]), PageText(2, ["go on."])], set())
    assert text == f"{table}\n\ngo on."


def test_empty_pages_leave_no_span_and_formats_without_pages_have_none() -> None:
    text, spans = assemble([PageText(1, ["a"]), PageText(2, []), PageText(3, ["b"])], set())
    assert text == "a\n\nb"
    assert [(span.number, span.start, span.end) for span in spans] == [(1, 0, 1), (3, 3, 4)]
    assert assemble([PageText(0, ["a"])], set()) == ("a", ())
