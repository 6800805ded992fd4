"""Whatever the rows: noise spares the answer, masks leave nothing, conversion keeps the answer."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.curate import CurateConfig, personal
from potstill.curate.blanks import without_blank
from potstill.curate.choices import UnconvertibleError
from potstill.curate.convert import convert
from potstill.curate.curation import Material, curate
from potstill.curate.decontaminate import Asked, Evaluation
from potstill.curate.dedup import Text, repeats
from potstill.curate.noise import SHORTEST, TOKEN, typo_variant, with_typos
from potstill.curate.text import SMALL, likeness, mended, one_slip_apart, words
from potstill.records import Example, Provenance, Turn

LETTERS = st.text("abcdefgijklmnoprstuvwzäé", min_size=1, max_size=9)
FIGURES = st.integers(0, 9999).map(str)
TEXTS = st.lists(st.one_of(LETTERS, FIGURES), min_size=1, max_size=14).map(" ".join)


def row(question: str, answer: str, **more: object) -> Example:
    return Example(
        id="r",
        turns=(
            Turn(role="user", content=f"{answer}. {question}\n\n{question}"),
            Turn(role="assistant", content=answer),
        ),
        question=question,
        answers=(answer,),
        provenance=Provenance(document="d", chunk=""),
        **more,  # type: ignore[arg-type]
    )


@given(TEXTS, st.floats(0.01, 1), st.integers(0, 99), st.booleans())
def test_noise_is_seeded_has_its_rate_and_is_one_slip_a_word(
    text: str, rate: float, seed: int, numbers: bool
) -> None:
    noisy = with_typos(text, rate, Random(seed), numbers=numbers)
    assert noisy == with_typos(text, rate, Random(seed), numbers=numbers)
    before, after = text.split(" "), noisy.split(" ")
    assert len(before) == len(after)
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    able = [
        one[0]
        for one in TOKEN.finditer(text)
        if len(one[0]) >= SHORTEST and (numbers or not any(map(str.isdigit, one[0])))
    ]
    assert len(changed) == min(len(able), max(1, round(rate * len(before))))
    for one, other in changed:
        assert numbers or not any(map(str.isdigit, one))
        assert abs(len(one) - len(other)) <= 1
        if len(one) > 4 and not any(map(str.isdigit, one)):
            assert one_slip_apart(one, other)


@given(TEXTS, TEXTS, st.integers(0, 9))
def test_a_typo_variant_changes_nothing_but_its_question(
    question: str, answer: str, seed: int
) -> None:
    example = row(f"{question} {answer}?", answer)
    made = typo_variant(example, 0, 0.25, seed)
    if made is None:
        return
    assert made.question != example.question
    assert made.answers == example.answers
    assert made.turns[-1] == example.turns[-1]
    kept = example.turns[0].content.removesuffix(example.question)
    assert made.turns[0].content == kept + made.question
    assert (made.provenance.parent, made.provenance.variant) == ("r", "typo")
    assert set(words(answer)) - SMALL <= set(words(made.question)) | SMALL


MAILS = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,5})?@[a-z]{2,8}\.(org|example)", fullmatch=True)
DIGITS = st.text("0123456789", min_size=14, max_size=14)


def with_check_digit(start: str) -> str:
    """A card number that begins so."""
    return next(start + last for last in "0123456789" if personal.luhn(start + last))


CARDS = DIGITS.map(lambda rest: with_check_digit(f"4{rest}"))
ACCOUNTS = st.text("0123456789", min_size=18, max_size=18).map(
    lambda rest: f"DE{98 - int(rest + '131400') % 97:02d}{rest}"
)
HOSTS = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts)))


@given(TEXTS, st.one_of(MAILS, CARDS, ACCOUNTS, HOSTS), TEXTS)
def test_masks_leave_nothing_and_change_nothing_else(before: str, secret: str, after: str) -> None:
    before, after = before.translate(NO_DIGITS), after.translate(NO_DIGITS)
    masked = personal.masked(f"{before} {secret} {after}")
    assert secret not in masked
    kind = "EMAIL" if "@" in secret else "IBAN" if secret[0] == "D" else None
    kind = kind or ("IP" if "." in secret else "CARD")
    assert masked == f"{before} [{kind}] {after}"
    assert personal.masked(masked) == masked


NO_DIGITS = str.maketrans("0123456789", "oizeasgtbq")


@given(st.text(max_size=80))
def test_what_is_found_never_overlaps_and_masking_is_stable(text: str) -> None:
    found = personal.find(text)
    assert all(one.end <= other.start for one, other in pairwise(found))
    masked = personal.masked(text)
    assert len(personal.find(masked)) == 0 or masked != text


@given(
    TEXTS,
    st.lists(LETTERS.filter(lambda one: len(one) > 2), min_size=2, max_size=6, unique=True),
    st.data(),
    st.sampled_from(("{}) {}", "({}) {}", "{}. {}", "[{}] {}")),
    st.sampled_from((" ", "\n")),
)
def test_choices_are_read_back_however_they_are_laid_out(
    stem: str, options: list[str], data: st.DataObject, form: str, between: str
) -> None:
    right = data.draw(st.integers(0, len(options) - 1))
    marked = between.join(
        form.format(letter, one) for letter, one in zip("ABCDEF", options, strict=False)
    )
    answer = data.draw(st.sampled_from(["ABCDEF"[right], options[right]]))
    question = f"What of {stem}?"
    inline = row(f"{question}{between}{marked}", answer, kind="multiple_choice")
    columns = row(question, answer, kind="multiple_choice", options=tuple(options))
    for example in (inline, columns):
        (made,) = convert(example)
        assert made.answers == (options[right],)
        assert made.turns[-1].content == options[right]
        assert made.question == question
        assert made.turns[0].content.endswith(question)


@given(TEXTS, TEXTS, TEXTS)
def test_every_sentence_with_a_blank_becomes_a_question_of_its_words(
    before: str, answer: str, after: str
) -> None:
    question = without_blank(f"{before} ____ {after}.", answer)
    assert question.endswith("?")
    assert "__" not in question
    assert set(words(f"{before} {after}")) - set(words(question)) <= SMALL | {"every"}


@given(st.text(max_size=60), st.text(max_size=12), st.lists(st.text(max_size=8), max_size=4))
def test_conversion_converts_or_says_why(question: str, answer: str, options: list[str]) -> None:
    for kind in ("multiple_choice", "fill_in_the_blank"):
        example = Example(
            id="r",
            kind=kind,
            turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
            question=question,
            answers=(answer,),
            options=tuple(options),
            provenance=Provenance(document="d", chunk=""),
        )
        try:
            rows = convert(example)
        except UnconvertibleError:
            continue
        for made in rows:
            assert made.kind == "qa"
            assert made.question
            assert made.turns[-1].content == made.answers[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=30), st.integers(0, 99))
def test_no_misspelt_copy_of_an_evaluation_question_passes(texts: list[str], seed: int) -> None:
    evaluation = Evaluation(n=13)
    for place, text in enumerate(texts):
        evaluation.add(Asked(f"e{place}", f"{text}?", ("yes sir",), False))
    for text in texts:
        assert evaluation.leak(Asked("r", f"{text}?", ("yes sir",), False)) is not None
        assert evaluation.leak(Asked("r", f"{text.upper()} ...", ("other",), False)) is not None
        long = [word for word in words(text) if len(word) > 4]
        if len(long) >= 4:
            noisy = with_typos(text, 0.25, Random(seed))
            assert evaluation.leak(Asked("r", noisy, ("yes sir",), False)) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=40), st.floats(0.5, 1))
def test_repeats_point_to_earlier_kept_texts_that_are_alike(
    texts: list[str], threshold: float
) -> None:
    content = [Text(tuple(words(text)), str(place)) for place, text in enumerate(texts)]
    found = repeats(content, threshold)
    for place, repeat in enumerate(found):
        if repeat is not None:
            assert repeat.of < place
            assert found[repeat.of] is None
            assert repeat.exact or repeat.similarity >= threshold
            assert not repeat.exact or content[repeat.of].words == content[place].words
    kept = [content[place].words for place, repeat in enumerate(found) if repeat is None]
    assert len(set(kept)) == len(kept)


@given(TEXTS.map(str.split), TEXTS.map(str.split))
def test_likeness_is_a_symmetric_share(one: list[str], other: list[str]) -> None:
    value = likeness(one, other)
    assert 0 <= value <= 1
    assert value == pytest.approx(likeness(other, one))
    assert likeness(one, one) == 1
    assert likeness(mended(one, other, one_slip_apart), other) >= value - 1e-9


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_rows_decides_no_split(seed: int) -> None:
    lot = Random(seed)
    rows = [
        row(f"What does machine {a}{b} of hall {a} make?", f"{b}{a} pins").model_copy(
            update={"id": f"{a}{b}"}
        )
        for a in "abcdefgh"
        for b in "pqrs"
    ]
    first = curate(Material([], rows), CurateConfig(near_duplicate=1), 3)
    lot.shuffle(rows)
    second = curate(Material([], rows), CurateConfig(near_duplicate=1), 3)
    for split, kept in first.kept.items():
        assert {one.id for one in kept} == {one.id for one in second.kept[split]}
