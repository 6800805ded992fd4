"""Personal data is found by its form and check digits, and masked everywhere alike."""

from __future__ import annotations

import pytest

from potstill.curate import personal
from potstill.records import Example, Provenance, Span, Turn


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to anna.muster+x@mail.example.org.", "Write to [EMAIL]."),
        ("Call +49 30 1234567 now", "Call [PHONE] now"),
        ("Call 030 1234567.", "Call [PHONE]."),
        ("Call (020) 7946 0958", "Call [PHONE]"),
        ("Call (555) 123-4567", "Call [PHONE]"),
        ("Tel.: 554 32 1", "Tel.: [PHONE]"),
        ("Pay with 4111 1111 1111 1111 today", "Pay with [CARD] today"),
        ("Pay with 5500-0000-0000-0004", "Pay with [CARD]"),
        ("To DE89 3704 0044 0532 0130 00 AND more", "To [IBAN] AND more"),
        ("To GB29NWBK60161331926819.", "To [IBAN]."),
        ("The host 192.168.0.17 answers", "The host [IP] answers"),
        ("The host fe80::1ff:fe23:4567:890a answers", "The host [IP] answers"),
        ("anna@mail.example or 10.0.0.1", "[EMAIL] or [IP]"),
    ],
)
def test_what_is_personal_is_masked(text: str, masked: str) -> None:
    assert personal.masked(text) == masked
    assert personal.masked(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Card 4111 1111 1111 1112 has a wrong check digit",
        "DE88 3704 0044 0532 0130 00 has a wrong check digit",
        "On 14-03-2009, 2009-03-14 and 14.03.2009",
        "From 12:30:45 to 13:00",
        "Version 1.2.3 of part 555-123",
        "Version 10.2.3.4, see section 1.2.3.4",
        "400-450 hours, 1 250 000 litres, 1,250,000 times",
        "The boiler holds 1250 litres at 3.5 bar, order 20091403",
        "999.999.0.1 is no address",
        "Follow @potstill and a@b",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert personal.masked(text) == text


def test_a_row_is_masked_in_every_field_and_its_span_goes_with_its_answer() -> None:
    mail = "anna@mail.example"
    row = Example(
        id="r",
        turns=(
            Turn(role="user", content=f"Ask {mail}.\n\nWho is {mail}?"),
            Turn(role="assistant", content=f"the warden, {mail}"),
        ),
        question=f"Who is {mail}?",
        reasoning=f"{mail} is the warden.",
        answers=(f"the warden, {mail}", "the warden"),
        options=(mail, "nobody"),
        provenance=Provenance(document="d", chunk="c", span=Span(start=4, end=21)),
    )
    masked = personal.masked_row(row)
    assert mail not in masked.model_dump_json()
    assert masked.question == "Who is [EMAIL]?"
    assert masked.answers == ("the warden, [EMAIL]", "the warden")
    assert masked.turns[-1].content == masked.answers[0]
    assert masked.provenance.span is None
    assert personal.kinds_in(row) == ["EMAIL"]
    plain = row.model_copy(update={"answers": ("the warden",)})
    assert personal.masked_row(plain).provenance.span == row.provenance.span


def test_an_answer_of_masks_alone_is_known() -> None:
    assert personal.only_masks("[EMAIL], [PHONE].")
    assert not personal.only_masks("call [PHONE]")
    assert not personal.only_masks("the warden")
