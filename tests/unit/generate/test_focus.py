"""What is asked about a chunk: sentences, table rows, and the answers worth asking for."""

from __future__ import annotations

import pytest

from potstill.generate.focus import answer_spans, plan, split_sentences

TABLE = "Post | Holder | Cabin\nChief stoker | Bram Oxley | 4\nGrader | Tove Lind | -\n"


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The lamp may burn at most 46 litres of oil in a week.", [("number", "46 litres")]),
        (
            "The station opened on 14 March 2009 and was founded by the engineer Maud Tarrant.",
            [("number", "14 March 2009"), ("name", "Maud Tarrant")],
        ),
        ("The jetty is closed from 20 May.", [("number", "20 May")]),
        ("It is under water for 2 hours and 50 minutes.", [("number", "2 hours and 50 minutes")]),
        ("The brushes turn at 85 turns per minute.", [("number", "85 turns per minute")]),
        ("The water is kept at 11 °C.", [("number", "11 °C")]),
        ("The brushes carry part number BR-2207 of old.", [("number", "BR-2207")]),
        ("It was relined by the firm Gorse and Daughters.", [("name", "Gorse and Daughters")]),
        ("Orrin Skerry is a station.", [("name", "Orrin Skerry")]),
        ("Tank 1 is the rough tank.", [("other", "rough tank")]),
        ("The letter is K for kelp.", [("other", "kelp")]),
        ("Racks enter a tunnel, and boards close it.", [("other", "boards close")]),
    ],
)
def test_figures_come_with_their_unit_and_names_whole(
    sentence: str, expected: list[tuple[str, str]]
) -> None:
    assert answer_spans(sentence, 8) == expected


def test_an_answer_is_no_longer_than_asked() -> None:
    spans = answer_spans("He met Anna Berta Clara Dora Emma Frieda there.", 3)
    assert spans == [("name", "Anna Berta Clara"), ("name", "Dora Emma Frieda")]


def test_sentences_end_where_no_abbreviation_explains_the_stop() -> None:
    text = (
        "Dr. Lind keeps 3.5 bar, e.g. at night. It drains into pond A. "
        "Maud T. Lind is dry (so she says.) So?"
    )
    assert split_sentences(text) == [
        "Dr. Lind keeps 3.5 bar, e.g. at night.",
        "It drains into pond A.",
        "Maud T. Lind is dry (so she says.)",
        "So?",
    ]


def test_table_cells_know_their_row_and_column_and_empty_ones_are_skipped() -> None:
    tasks = plan(TABLE, limit=9, min_words=5, max_answer_words=8)
    assert [(one.row, one.column, one.answer, one.kind) for one in tasks] == [
        ("Chief stoker", "Holder", "Bram Oxley", "name"),
        ("Chief stoker", "Cabin", "4", "number"),
        ("Grader", "Holder", "Tove Lind", "name"),
    ]
    assert tasks[0].shown == "Post: Chief stoker. Holder: Bram Oxley. Cabin: 4."


def test_titles_and_short_lines_are_not_asked_about() -> None:
    text = "3. Washing\n\nThe Line\n\nIt has 3 tanks.\n\nThe washing line has 3 tanks in a row."
    tasks = plan(text, limit=9, min_words=5, max_answer_words=8)
    assert [one.focus for one in tasks] == ["The washing line has 3 tanks in a row."]


def test_with_little_room_every_sentence_comes_before_any_second_answer() -> None:
    text = (
        "The old lamp of Maud Tarrant burns 46 litres. The new lamp of Bram Oxley burns 12 litres."
    )
    two = plan(text, limit=2, min_words=3, max_answer_words=8)
    assert [one.answer for one in two] == ["46 litres", "12 litres"]
    four = plan(text, limit=9, min_words=3, max_answer_words=8)
    assert [one.answer for one in four] == ["46 litres", "Maud Tarrant", "12 litres", "Bram Oxley"]
    assert [one.index for one in four] == [0, 1, 2, 3]
