"""An answer is tied to the sentence it rests on, or refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.grounding import locate, sentences, share, support
from potstill.generate.unusable import UnusableError
from potstill.generate.words import numbers, same_word, tokens
from potstill.records import Span

PASSAGE = (
    "3. The lamp\n\nThe lamp of Skerry Point burns 46 litres of\nthorn-oil in eleven nights. Dr. "
    "Lind trims it at dusk, because the wick is short.\n\nPost | Holder\nChief stoker | Bram Oxley"
    "\n\nThe brine is kept at 3.5 bar. The brine of Port Annet is kept at 46 litres."
)


def words_of(passage: str, span: Span) -> str:
    return passage[span.start : span.end]


def test_sentences_are_those_of_the_text_with_rows_and_headings_apart() -> None:
    assert [words_of(PASSAGE, span) for span in sentences(PASSAGE)] == [
        "3. The lamp",
        "The lamp of Skerry Point burns 46 litres of\nthorn-oil in eleven nights.",
        "Dr. Lind trims it at dusk, because the wick is short.",
        "Post | Holder",
        "Chief stoker | Bram Oxley",
        "The brine is kept at 3.5 bar.",
        "The brine of Port Annet is kept at 46 litres.",
    ]


@given(st.text(alphabet="ab Z.!?\n|3", max_size=120))
def test_sentences_are_in_order_and_hold_all_that_is_not_white(text: str) -> None:
    spans = sentences(text)
    covered = set()
    last = 0
    for span in spans:
        assert last <= span.start < span.end <= len(text)
        last = span.end
        covered |= set(range(span.start, span.end))
    assert all(at in covered for at, sign in enumerate(text) if not sign.isspace())


@pytest.mark.parametrize(
    ("quote", "how", "stands"),
    [
        ("burns 46 litres", "exact", "burns 46 litres"),
        ("46 litres of thorn-oil", "exact", "46 litres of\nthorn-oil"),
        ("LITRES OF THORN OIL, in eleven nights!", "normal",
         "litres of\nthorn-oil in eleven nights"),
        ("The lamp of Skery Point burns 46 litres", "fuzzy",
         "The lamp of Skerry Point burns 46 litres"),
    ],
)  # fmt: skip
def test_a_quotation_is_found_as_it_is_folded_or_with_slips(
    quote: str, how: str, stands: str
) -> None:
    found = locate(PASSAGE, quote)
    assert found is not None
    assert (found.how, words_of(PASSAGE, found.span)) == (how, stands)


@pytest.mark.parametrize(
    "quote",
    [
        "6 litres",  # inside 46
        "The lamp of Skerry Point burns 47 litres",  # one letter, another meaning
        "The ferry leaves Port Sena at noon on weekdays",
        "litre of oil",
        "",
    ],
)
def test_what_does_not_stand_there_is_not_found(quote: str) -> None:
    assert locate(PASSAGE, quote) is None


def test_of_equal_places_the_one_in_the_sentence_is_taken() -> None:
    at = PASSAGE.rindex("46 litres")
    near = Span(start=at - 30, end=len(PASSAGE))
    found = locate(PASSAGE, "46 litres", near)
    assert found is not None
    assert found.span.start == at


@pytest.mark.parametrize(
    ("question", "answer", "evidence", "stands"),
    [
        ("How much does the lamp burn?", "46 litres", "", "46 litres"),
        (
            "Does the lamp of Skerry Point burn for 11 nights?",
            "Yes",
            "",
            "The lamp of Skerry Point burns 46 litres of\nthorn-oil in eleven nights.",
        ),
        (
            "For how many nights?",
            "11 nights",
            "",
            "The lamp of Skerry Point burns 46 litres of\nthorn-oil in eleven nights.",
        ),
        (
            "Why does Dr. Lind trim it?",
            "Because its wick is so short",
            "Lind trims it at dusk, because the wick is short.",
            "Lind trims it at dusk, because the wick is short.",
        ),
        (
            "When is it trimmed?",
            "The lamp is trimmed when dusk comes.",
            "",
            "Dr. Lind trims it at dusk, because the wick is short.",
        ),
    ],
)
def test_a_supported_answer_knows_where_it_stands_or_the_sentence_it_rests_on(
    question: str, answer: str, evidence: str, stands: str
) -> None:
    found = support(PASSAGE, question, answer, evidence)
    assert words_of(PASSAGE, found.span) == stands


def test_the_quotation_says_which_of_two_places_is_meant() -> None:
    evidence = "The brine of Port Annet is kept at 46 litres."
    found = support(PASSAGE, "How much brine is kept?", "46 litres", evidence)
    assert found.span.start == PASSAGE.rindex("46 litres")


@pytest.mark.parametrize(
    ("answer", "evidence", "reason"),
    [
        ("47 litres", "", "unsupported_number"),
        ("In a copper kettle under the stairs", "", "unsupported"),
        ("46 litres", "It is written on the lamp itself.", "evidence_not_in_passage"),
        # Every word stands somewhere in the passage, but far from what is quoted.
        ("Chief stoker Bram Oxley", "The lamp of Skerry Point burns 46 litres", "unsupported"),
    ],
)
def test_an_answer_that_the_passage_does_not_support_is_refused(
    answer: str, evidence: str, reason: str
) -> None:
    with pytest.raises(UnusableError) as caught:
        support(PASSAGE, "What?", answer, evidence)
    assert caught.value.reason == reason


def test_in_another_language_the_quotation_and_the_figures_are_the_tie() -> None:
    evidence = "The lamp of Skerry Point burns 46 litres"
    found = support(PASSAGE, "Wie viel?", "46 Liter in elf Nächten", evidence, least=0.0)
    assert found.span.start == PASSAGE.index("The lamp of")
    with pytest.raises(UnusableError):
        support(PASSAGE, "Wie viel?", "48 Liter", evidence, least=0.0)


def test_words_are_compared_by_their_forms_in_any_script() -> None:
    assert same_word("carries", "carry")
    assert same_word("founded", "founder")
    assert not same_word("station", "state")
    assert not same_word("46", "460")
    assert numbers("1,200 tonnes, 3,5 bar and 12 000") == {"1200", "3.5", "12000"}
    assert tokens("灯台は46") == ["灯台", "台は", "46"]
    assert share(["灯台"], tokens("灯台は")) == 1.0
    assert share([], ["a"]) == 1.0
