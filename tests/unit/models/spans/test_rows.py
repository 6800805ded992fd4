"""Which rows mark a span, and why the others do not."""

from __future__ import annotations

import pytest

from potstill.models.spans.rows import span_rows
from potstill.records import Chunk, Example, Provenance, Span, Turn

TEXT = "Valve B2 opens at 3.5\nbar. The boiler opens at 9 bar, and the boiler holds 1250 litres."
CHUNKS = {"c": Chunk(id="c", document="d", source="s", start=0, end=90, tokens=20, text=TEXT)}


def row(answer: str, span: Span | None = None, **fields: object) -> Example:
    asked = {"question": "How much?", "kind": "qa"} | fields
    chunk = str(asked.pop("chunk", "c"))
    return Example.model_validate(
        {
            "id": "r",
            "turns": (Turn(role="user", content="?"), Turn(role="assistant", content=answer)),
            "answers": (answer,),
            "provenance": Provenance(document="d", chunk=chunk, span=span),
            **asked,
        }
    )


def test_the_span_of_the_row_comes_first_then_the_only_place_of_the_words() -> None:
    second = TEXT.index("boiler", 40)
    rows, rejected = span_rows(
        [
            row("boiler", Span(start=second, end=second + 6)),
            row("1250 litres"),
            row("3.5 bar"),  # a line break between its words
            row("opens", Span(start=0, end=21)),  # the row's span is its sentence
        ],
        CHUNKS,
        "distill",
    )
    assert rejected == []
    assert rows[0].start == second
    assert [TEXT[one.start : one.end] for one in rows] == [
        "boiler", "1250 litres", "3.5\nbar", "opens",
    ]  # fmt: skip
    assert rows[3].start == TEXT.index("opens")


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (row("boiler"), "answer_not_in_passage"),  # twice, and the row does not say which
        (row("1300 litres"), "answer_not_in_passage"),
        (row("9 bar", chunk=""), "no_passage"),
        (row("9 bar", chunk="gone"), "no_passage"),
        (row("9 bar", kind="conversation"), "no_question"),
        (row("9 bar", question=" "), "no_question"),
    ],
)
def test_other_rows_are_set_aside_with_their_reason(example: Example, reason: str) -> None:
    rows, (rejected,) = span_rows([example], CHUNKS, "evaluate")
    assert rows == []
    assert (rejected.reason, rejected.stage, rejected.id) == (reason, "evaluate", "r")


def test_a_refusal_has_no_span() -> None:
    (found,), _ = span_rows([row("The passage does not say.", kind="refusal")], CHUNKS, "distill")
    assert found.start is found.end is None
