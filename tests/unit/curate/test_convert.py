"""Multiple-choice and fill-in-the-blank rows become plain questions, or say why they cannot."""

from __future__ import annotations

import pytest

from potstill.curate.blanks import statement_question, without_blank
from potstill.curate.choices import UnconvertibleError, has_choices
from potstill.curate.convert import convert
from potstill.records import Example, Provenance, Turn

PASSAGE = "The kiln of Brannoch is lit at 05:40. Mrs Achterberg keeps the spare valves."


def row(
    question: str,
    *answers: str,
    kind: str = "multiple_choice",
    options: tuple[str, ...] = (),
    passage: str = "",
) -> Example:
    asked = f"{passage}\n\n{question}" if passage else question
    return Example(
        id="r",
        kind=kind,
        turns=(Turn(role="user", content=asked), Turn(role="assistant", content=answers[0])),
        question=question,
        answers=answers,
        options=options,
        provenance=Provenance(document="d", chunk="c" if passage else ""),
    )


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France? A) Rome B) Paris C) Madrid",
        "What is the capital of France?\nA. Rome\nB. Paris\nC. Madrid",
        "What is the capital of France? (a) Rome (b) Paris (c) Madrid",
        "What is the capital of France? a) Rome, b) Paris, c) Madrid.",
        "What is the capital of France? Options: 1) Rome 2) Paris 3) Madrid",
        "What is the capital of France? [A] Rome [B] Paris",
        "What is the capital of France?\n1. Rome\n2. Paris",
        "What is the capital of France? (i) Rome (ii) Paris (iii) Madrid",
        "Q1: What is the capital of France?\n(A) Rome\n(B) Paris\nAnswer: B",
        "Choose the correct answer: What is the capital of France? A: Rome B: Paris",
    ],
)
@pytest.mark.parametrize("answer", ["B", "b)", "(B)", "Paris", "paris.", "B) Paris", "Option B"])
def test_choices_in_the_question_and_any_form_of_answer(question: str, answer: str) -> None:
    (made,) = convert(row(question, answer))
    assert (made.question, made.answers) == ("What is the capital of France?", ("Paris",))
    assert [turn.content for turn in made.turns] == ["What is the capital of France?", "Paris"]
    assert (made.kind, made.options, made.id) == ("qa", (), "r")


@pytest.mark.parametrize("answer", ["C", "K7", "c. K7", "The answer is C"])
def test_choices_in_columns(answer: str) -> None:
    given = row("Which valve is used?", answer, options=("K5", "K6", "K7", "K8"), passage=PASSAGE)
    (made,) = convert(given, PASSAGE)
    assert made.answers == ("K7",)
    assert made.turns[0].content == f"{PASSAGE}\n\nWhich valve is used?"


def test_a_choice_that_is_a_number_is_taken_by_its_words() -> None:
    (made,) = convert(row("How many valves are there?", "2", options=("1", "3", "2")))
    assert made.answers == ("2",)


@pytest.mark.parametrize(
    "choices", ["1) Rome 2) Paris", "(i) Rome (ii) Paris", "\n1. Rome\n2. Paris"]
)
def test_a_number_names_a_choice_that_has_one(choices: str) -> None:
    (made,) = convert(row(f"Which city is it? {choices}", "2"))
    assert made.answers == ("Paris",)


@pytest.mark.parametrize("answer", ["0", "1", "2)"])
@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which city is it? A) Rome B) Paris C) Madrid", ()),
        ("Which city is it?", ("Rome", "Paris", "Madrid")),
        ("Which city is it? A) Rome B) Paris C) Madrid", ("Rome", "Paris", "Madrid")),
    ],
)
def test_a_number_of_choices_without_numbers_is_not_guessed_at(
    question: str, options: tuple[str, ...], answer: str
) -> None:
    with pytest.raises(UnconvertibleError) as problem:
        convert(row(question, answer, options=options))
    assert problem.value.reason == "ambiguous_answer"
    assert options or has_choices(row(question, answer, kind="qa"))


def test_what_stands_after_the_choices_stays() -> None:
    given = row("Which city is it?", "Paris", options=("Rome", "Paris"), passage=PASSAGE)
    asked = f"Read.\n\n{PASSAGE}\n\nWhich city is it?\n\nA) Rome\nB) Paris\n\nBe brief."
    turns = (Turn(role="user", content=asked), given.turns[1])
    (made,) = convert(given.model_copy(update={"turns": turns}), PASSAGE)
    assert made.turns[0].content == f"Read.\n\n{PASSAGE}\n\nWhich city is it?\n\nBe brief."


def test_choices_in_a_plain_row_are_seen_if_the_answer_is_one() -> None:
    assert has_choices(row("Which city is it? 1) Rome 2) Paris", "2", kind="qa"))
    assert not has_choices(row("What are 1) the cost and 2) the date?", "400", kind="qa"))
    assert not has_choices(row("Which city is it?", "2", kind="qa"))


def test_columns_that_are_repeated_in_the_question_leave_it() -> None:
    options = ("Rome", "Paris")
    (made,) = convert(row("Which city is it? A) Rome B) Paris", "B", options=options))
    assert made.question == "Which city is it?"


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("The capital of France is:", "What is the capital of France?"),
        ("The capital of France is ____.", "What is the capital of France?"),
        ("Name the capital of France.", "What is the capital of France?"),
        ("Which of the following is the capital of France?", "What is the capital of France?"),
        ("Which of these cities is the capital?", "Which city is the capital?"),
        ("Which of the following branches is it?", "Which branch is it?"),
        ("Which of these metals is liquid at noon?", "Which metal is liquid at noon?"),
    ],
)
def test_stems_that_are_no_question_become_one(stem: str, expected: str) -> None:
    (made,) = convert(row(stem, "B", options=("Rome", "Paris", "Madrid")))
    assert made.question == expected
    assert made.answers == ("Paris",)


def test_true_or_false_becomes_yes_or_no() -> None:
    (made,) = convert(row("The kiln is lit at noon.", "False", options=("True", "False")))
    assert (made.question, made.answers) == ("Is it true that the kiln is lit at noon?", ("No",))


@pytest.mark.parametrize(
    ("question", "answer", "options", "reason"),
    [
        ("What is the capital of France?", "Paris", (), "no_options"),
        ("What is the capital? A) Rome", "A", (), "no_options"),
        ("What is the capital?", "D", ("Rome", "Paris"), "answer_not_an_option"),
        ("What is the capital?", "Lisbon", ("Rome", "Paris"), "answer_not_an_option"),
        ("Which are cities?", "A and B", ("Rome", "Paris", "Ox"), "several_right_options"),
        ("What is true?", "C", ("Rome", "Paris", "All of the above"), "answer_refers_to_options"),
        ("Which is NOT a city?", "C", ("Rome", "Paris", "Ox"), "asks_about_options"),
        ("Which of the following statements is true?", "A", ("x y", "z"), "asks_about_options"),
        ("Which of these is a city?", "A", ("Rome", "Po"), "asks_about_options"),
        ("Which of the following is not hot?", "A", ("Ice", "Sun"), "asks_about_options"),
        ("Which of these can fly?", "A", ("Bats", "Cats"), "asks_about_options"),
        ("What is the capital?", " ", ("Rome", "Paris"), "empty_answer"),
        ("____", "A", ("Rome", "Paris"), "no_question"),
    ],
)
def test_what_cannot_be_converted_says_why(
    question: str, answer: str, options: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UnconvertibleError) as failure:
        convert(row(question, answer, options=options))
    assert failure.value.reason == reason
    assert failure.value.detail


def test_several_right_answers_of_one_list_are_refused() -> None:
    with pytest.raises(UnconvertibleError, match="several_right_options"):
        convert(row("Which are cities?", "Rome", "Paris", options=("Rome", "Paris", "Ox")))


@pytest.mark.parametrize(
    ("sentence", "answer", "question"),
    [
        ("The kiln is lit at ____.", "05:40", "At what time is the kiln lit?"),
        ("____ keeps the spare valves.", "Mrs Achterberg", "Who keeps the spare valves?"),
        ("____ wrote the handbook.", "Orrin Skerry", "Who wrote the handbook?"),
        ("____ is the capital of France.", "Paris", "What is the capital of France?"),
        ("The boiler can hold ____ litres.", "1250", "How many litres can the boiler hold?"),
        ("The lamp burns ____ litres a week.", "46", "The lamp burns how many litres a week?"),
        ("Valve K7 is replaced after __ hours.", "400",
         "After how many hours is Valve K7 replaced?"),
        ("In ____, the mill was founded.", "1843", "In which year was the mill founded?"),
        ("The mill was founded in ____ by Ada.", "1843",
         "In which year was the mill founded by Ada?"),
        ("The warden is called ____.", "Mrs Achterberg", "What is the warden called?"),
        ("The valve that is used here is ____", "K7", "What is the valve that is used here?"),
        ("Drills are held every ____.", "six months", "How often are drills held?"),
        ("The report must be signed by ____.", "Dr Brandt", "By whom must the report be signed?"),
        ("It has a weight of ____ kg.", "12", "It has a weight of how many kg?"),
        ("The ____ of the cell is small.", "core",
         'What is missing in "The \N{HORIZONTAL ELLIPSIS} of the cell is small"?'),
        ("Gold is a metal. Its symbol is [blank].", "Au", "Gold is a metal. What is its symbol?"),
    ],
)  # fmt: skip
def test_a_blank_becomes_a_question_word(sentence: str, answer: str, question: str) -> None:
    assert without_blank(sentence, answer) == question


def test_an_unfinished_stem_without_verb_asks_what_is_missing() -> None:
    assert statement_question("The powerhouse of the cell", "x").startswith("What is missing in")


@pytest.mark.parametrize("answers", [("kiln", "05:40"), ("kiln; 05:40",), ("kiln, 05:40",)])
def test_each_blank_is_a_row_with_the_others_filled_in(answers: tuple[str, ...]) -> None:
    given = row("The ____ is lit at ____.", *answers, kind="fill_in_the_blank", passage=PASSAGE)
    first, second = convert(given, PASSAGE)
    assert (first.question, first.answers) == ("What is lit at 05:40?", ("kiln",))
    assert (second.question, second.answers) == ("At what time is the kiln lit?", ("05:40",))
    assert first.id == "r" != second.id
    assert second.turns[0].content == f"{PASSAGE}\n\nAt what time is the kiln lit?"
    for made in (first, second):
        span = made.provenance.span
        assert span is not None
        assert PASSAGE[span.start : span.end] == made.answers[0] == made.turns[-1].content


@pytest.mark.parametrize(
    ("sentence", "answers", "reason"),
    [
        ("The ____ is lit at ____.", ("kiln",), "blanks_do_not_match"),
        ("The ____ is lit at ____.", ("a; b; c",), "blanks_do_not_match"),
        ("The kiln is lit at noon.", ("kiln",), "no_blank"),
    ],
)
def test_blanks_that_do_not_match_are_refused(
    sentence: str, answers: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UnconvertibleError) as failure:
        convert(row(sentence, *answers, kind="fill_in_the_blank"))
    assert failure.value.reason == reason


def test_questions_of_any_language_are_converted_and_sentences_in_english_alone() -> None:
    options = ("Rom", "Paris")
    (made,) = convert(row("Wie heißt die Hauptstadt?", "B", options=options), language="de")
    assert made.answers == ("Paris",)
    with pytest.raises(UnconvertibleError, match="no_rules_for_language"):
        convert(row("Die Hauptstadt ist ____.", "x", kind="fill_in_the_blank"), language="de")


def test_a_reason_that_names_a_letter_goes() -> None:
    given = row("What is the capital?", "B", options=("Rome", "Paris"))
    (made,) = convert(given.model_copy(update={"reasoning": "Option B is right."}))
    assert made.reasoning == ""
    (made,) = convert(given.model_copy(update={"reasoning": "Paris is the seat of government."}))
    assert made.reasoning
