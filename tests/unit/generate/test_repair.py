"""Malformed replies: what is whole is read, what is cut off is not guessed, the rest says why."""

from __future__ import annotations

import json
import random
from typing import Any

import malformed
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from potstill.generate.kinds.multiple_choice import Choice
from potstill.generate.kinds.qa import Pair
from potstill.generate.kinds.summary import Summary
from potstill.generate.repair import Item, Shape, parse
from potstill.generate.unusable import UnusableError

PAIRS = Shape(Pair, "pairs")
WORDS = (
    "the lamp of Skerry Point burns 46 litres a week because its wick is wide and old, while "
    "Tove Lindqvist's brine {warm} runs at 3.5 bar [gauge] / 12 % : it is kept so"
).split()
GOOD = '{"question": "Who lit it?", "evidence": "Maud lit it.", "reasoning": "r", "answer": "Maud"}'


def some_rows(random: random.Random) -> list[dict[str, str]]:
    def words(low: int, high: int) -> str:
        return " ".join(random.choices(WORDS, k=random.randint(low, high)))

    return [
        {
            "question": f"What is {words(3, 8)} no {n}?",
            "evidence": f"{words(5, 15)}. {words(2, 4)}.",
            "reasoning": f"{words(4, 10)}.",
            "answer": f"{words(1, 6)} {n}",
        }
        for n in range(random.randint(1, 8))
    ]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def read_right(rows: malformed.Rows, text: str, form: str) -> bool:
    """Whether all rows came out, with their words."""
    try:
        parsed = parse(text, PAIRS)
    except UnusableError:
        return False
    quoted = 'the "{}" kind' if form == "inner_quotes" else "{}"
    wanted = [(row["question"], quoted.format(row["answer"])) for row in rows]
    found = [(squeezed(one.question), squeezed(one.answer)) for one in parsed.items]
    return [(squeezed(q), squeezed(a)) for q, a in wanted] == found


def test_of_thousands_of_recoverable_replies_less_than_one_in_a_hundred_is_lost() -> None:
    lost: list[tuple[str, str, str]] = []
    total = 0
    for seed in range(4):
        for form, spoil in malformed.FORMS.items():
            for around, wrap in malformed.AROUND.items():
                rows = some_rows(random.Random(f"{seed}/{form}/{around}"))
                text = wrap(spoil(rows))
                total += 1
                if not read_right(rows, text, form):
                    lost.append((form, around, text))
    assert total > 900
    names = {(form, around) for form, around, _ in lost}
    assert len(lost) < 0.01 * total, f"{len(lost)} of {total}: {names}"


def test_a_reply_that_was_cut_off_gives_every_whole_row_and_no_other() -> None:
    lost = made_up = total = 0
    for seed in range(300):
        rng = random.Random(seed)
        rows = some_rows(rng)
        text, whole = malformed.cut(malformed.pretty(rows), rng, rows)
        parsed = parse(malformed.AROUND["fence not closed"](text).rstrip(), PAIRS, cut_off=True)
        wanted = [(row["question"], row["answer"]) for row in rows]
        found = [(one.question, one.answer) for one in parsed.items]
        total += whole
        lost += sum(one not in found for one in wanted[:whole])
        made_up += sum(one not in wanted for one in found)
    assert total > 600
    assert made_up == 0
    assert lost < 0.01 * total


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_the_words_clean_rows_come_through_a_fence_as_they_are(data: Any) -> None:
    words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=40)
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries(
                dict.fromkeys(("question", "evidence", "reasoning", "answer"), words)
            ),
            min_size=1,
            max_size=4,
        )
    )
    kept = [row for row in rows if len(row["question"].strip()) >= 5 and row["answer"].strip()]
    text = malformed.pretty(rows)
    try:
        parsed = parse(text, PAIRS)
    except UnusableError:
        assert not kept
        return
    assert [one.answer for one in parsed.items] == [row["answer"].strip() for row in kept]


@given(st.text(max_size=300), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_with_a_reason(text: str, cut_off: bool) -> None:
    reasons = {"empty_reply", "cut_off", "invalid_reply"}
    assert reason_of(text, cut_off) in {"", *reasons}


def reason_of(text: str, cut_off: bool) -> str:
    try:
        parse(text, PAIRS, cut_off)
    except UnusableError as failure:
        return failure.reason
    return ""


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (GOOD, ["Maud"]),
        (f"[{GOOD}]", ["Maud"]),
        (f'{{"pairs": {GOOD}}}', ["Maud"]),
        ('{"pairs": [{"q": "Who lit it?", "a": "Maud"}]}', ["Maud"]),
        ('{"pairs": [{"question": "How many?", "answer": 46}]}', ["46"]),
        ('{"pairs": [{"question": "Is it lit?", "answer": true}]}', ["true"]),
        ('{"pairs": [{"question": "Which two?", "answer": ["Maud", "Bram"]}]}', ["Maud, Bram"]),
        (f"<think>{GOOD.replace('Maud', 'Bram')}</think>{GOOD}", ["Maud"]),
        (
            f"```json\n{GOOD.replace('Maud', 'Bram')}\n```\nNo, wrong. Again:\n```\n{GOOD}\n```",
            ["Maud"],
        ),
        (f"<think>I do not know. {GOOD}", ["Maud"]),
        ('{"pairs": [' + GOOD + ', "and so on"]}', ["Maud"]),
    ],
)
def test_replies_seen_in_the_wild(text: str, answers: list[str]) -> None:
    assert [one.answer for one in parse(text, PAIRS).items] == answers


@pytest.mark.parametrize(
    ("text", "cut_off", "reason"),
    [
        ("", False, "empty_reply"),
        ("I cannot help with that.", False, "invalid_reply"),
        ('{"pairs": []}', False, "invalid_reply"),
        ('{"pairs": [{"question": "Who lit it?"}]}', False, "invalid_reply"),
        ('{"pairs": [{"question": "Who lit it?", "answer": null}]}', False, "invalid_reply"),
        ('{"pairs": [{"question": "Who lit it?", "answer": "Mau', True, "cut_off"),
        ('{"pairs": [{"question": "Who lit it?", "answer": "Mau', False, "invalid_reply"),
        ("[" * 5000, False, "invalid_reply"),
        ("<think>" + "so " * 50, True, "cut_off"),
    ],
)
def test_what_holds_no_whole_row_is_refused(text: str, cut_off: bool, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        parse(text, PAIRS, cut_off)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_bad_row_is_named_and_the_others_stay() -> None:
    parsed = parse(f'{{"pairs": [{GOOD}, {{"question": "Why so?"}}, {GOOD}]}}', PAIRS)
    assert len(parsed.items) == 2
    ((detail, written),) = parsed.refused
    assert detail.startswith("answer: ")
    assert json.loads(written) == {"question": "Why so?"}


def test_a_summary_is_never_half_of_one() -> None:
    shape = Shape(Summary)
    good = "A long enough summary of it"
    assert parse(f'{{"summary": "{good}."}}', shape).items[0].summary == f"{good}."
    assert parse(f'{{"summary": "{good}."', shape).items[0].summary == f"{good}."
    assert parse(f'[{{"summary": "{good}."}}]', shape).items[0].summary == f"{good}."
    with pytest.raises(UnusableError):
        parse(f'{{"summary": "{good}', shape, cut_off=True)


def test_lists_of_texts_come_in_any_clothes() -> None:
    shape = Shape(Choice, "questions")
    row = {"question": "Which way is it?", "evidence": "e", "answer": "north"}
    for given_as in (
        ["a", "b", 3],
        {"A": "a", "B": "b", "C": 3},
        "a, b, 3",
        "a\nb\n3",
        [{"text": "a"}, {"text": "b"}, {"text": "3"}],
    ):
        text = json.dumps({"questions": [{**row, "distractors": given_as}]})
        assert parse(text, shape).items[0].distractors == ("a", "b", "3")


def test_a_row_with_half_of_a_sign_is_refused_in_words_that_a_file_can_hold() -> None:
    text = r'{"pairs": [{"question": "Which \ud83d is it?", "answer": "b"}]}'
    with pytest.raises(UnusableError) as caught:
        parse(text, PAIRS)
    caught.value.detail.encode()
    good = text.replace("]}", ', {"question": "Which way is it?", "answer": "north"}]}')
    parsed = parse(good, PAIRS)
    assert [one.answer for one in parsed.items] == ["north"]
    assert [written.encode() and r"\ud83d" in written for _, written in parsed.refused] == [True]


def test_strict_json_is_not_touched() -> None:
    class Loose(Item):
        question: str
        answer: str = Field(min_length=1)

    parsed = parse('{"pairs": [{"question": "a, b", "answer": "c; d"}]}', Shape(Loose, "pairs"))
    assert not parsed.mended
    assert parsed.items[0].answer == "c; d"
    assert parse("{'pairs': [{'question': 'a', 'answer': 'b'}]}", Shape(Loose, "pairs")).mended
