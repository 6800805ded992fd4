"""The contamination audit: planted copies are found, a prompt's own words do not count."""

from __future__ import annotations

from potstill.evaluate.contamination import audit, summary
from potstill.records import Example, Provenance, Turn


def row(name: str, passage: str, question: str, answer: str = "42") -> Example:
    asked = f"Answer from the passage below, in as few words as you can.\n{passage}\n{question}"
    return Example(
        id=name,
        question=question,
        turns=(
            Turn(role="system", content="You are a careful assistant who answers briefly."),
            Turn(role="user", content=asked),
            Turn(role="assistant", content=answer),
        ),
        provenance=Provenance(document="d", chunk="c"),
    )


def words(start: int, count: int = 30) -> str:
    return " ".join(f"word{n}" for n in range(start, start + count))


TRAIN = [row(f"t{n}", words(100 * n), f"What of number {n} in the list?") for n in range(30)]


def test_a_copied_row_is_found_and_a_fresh_one_is_not() -> None:
    fresh = row("fresh", words(9000), "Which colour has the old valve?")
    found = audit([TRAIN[7].model_copy(update={"id": "copy"}), fresh], TRAIN, words=6)
    assert (found[0].asked, found[0].text, found[0].nearest, found[0].seen) == (
        1.0,
        1.0,
        "t7",
        True,
    )
    assert (found[1].asked, found[1].text, found[1].nearest, found[1].seen) == (0.0, 0.0, "", False)


def test_a_question_alone_is_found_in_another_passage() -> None:
    test = row("q", words(9000), "What of number 3 in the list?")
    (found,) = audit([test], TRAIN, words=8)
    assert found.asked == 1.0  # shorter than eight words: one piece
    assert found.text < 0.2
    assert found.nearest == "t3"


def test_half_a_passage_is_half_an_overlap() -> None:
    test = row("half", words(0, 15) + " " + words(9000, 15), "Which colour has the old valve?")
    (found,) = audit([test], TRAIN, words=4)
    assert 0.2 < found.text < 0.6
    assert found.nearest == "t0"


def test_without_training_rows_nothing_is_seen_and_few_rows_have_no_template() -> None:
    (found,) = audit([TRAIN[0]], [], words=8)
    assert (found.asked, found.text, found.nearest) == (0.0, 0.0, "")
    (few,) = audit([row("f", words(9000), "Which?")], TRAIN[:5], words=6)
    assert few.text > 0  # the prompt's own words cannot be told from a copy


def test_a_row_without_a_question_is_judged_by_its_text() -> None:
    bare = TRAIN[2].model_copy(update={"question": ""})
    (found,) = audit([bare], TRAIN, words=8)
    assert found.asked is None
    assert found.seen


def test_the_summary_counts_and_lists_the_most_seen_first() -> None:
    half = row("half", words(0, 15) + " " + words(9000, 15), "Which colour has the old valve?")
    made = summary(audit([half, TRAIN[4], TRAIN[5]], TRAIN, words=6), 6)
    assert (made["rows"], made["seen"], made["untouched"]) == (3, 2, 0)
    assert [one["id"] for one in made["most"]] == ["t4", "t5"]
    assert made["mean_asked"] == 2 / 3
