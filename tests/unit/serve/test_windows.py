"""What a window's verdict says, and what it leaves untested, over made-up rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from potstill.errors import InputError
from potstill.serve.windows import Reference, Sample, Signal, chosen_rows

QUESTIONS = [f"Question number {place} of the handbook?" for place in range(120)]


def sample(count: int, seed: int, shift: float = 0.0, vectors: bool = True) -> Sample:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, 8)) + shift * np.eye(8)[0]
    return Sample(
        (random.poisson(9, count) + 1).tolist(),
        random.choice(["en", "en", "en", "de"], count).tolist(),
        (random.random(count) < 0.1).tolist(),
        rows / np.linalg.norm(rows, axis=1, keepdims=True) if vectors else None,
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(sample(120, 1), QUESTIONS)


def test_a_window_of_the_same_kind_is_calm(reference: Reference) -> None:
    verdict = reference.verdict(sample(60, 2), {}, 0.01, 5, 999)
    assert [one.name for one in verdict.signals] == [
        "meaning", "topic", "length", "language", "refusal",
    ]  # fmt: skip
    assert not verdict.alarm
    assert set(verdict.untested) == {"answer_length", "confidence"}
    for one in verdict.signals[1:]:
        assert sum(left for _, left, _ in one.shares) == pytest.approx(1, abs=0.01)
        assert sum(right for _, _, right in one.shares) == pytest.approx(1, abs=0.01)
    assert verdict.as_dict() == reference.verdict(sample(60, 2), {}, 0.01, 5, 999).as_dict()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("meaning", lambda one: replace(one, vectors=sample(60, 3, shift=2.5).vectors)),
        ("length", lambda one: replace(one, length=[value + 9 for value in one.length])),
        ("language", lambda one: replace(one, language=["fr"] * 60)),
        ("refusal", lambda one: replace(one, refusal=[True] * 30 + [False] * 30)),
    ],
)
def test_each_planted_change_is_named(reference: Reference, name: str, change: object) -> None:
    verdict = reference.verdict(change(sample(60, 2)), {}, 0.01, 5, 1999)  # type: ignore[operator]
    assert verdict.alarm
    assert name in verdict.moved
    assert set(verdict.moved) <= {name, "topic"}
    assert verdict.as_dict()["alarm"]


def test_without_an_encoder_everything_else_is_tested() -> None:
    blind = Reference(sample(120, 1, vectors=False), QUESTIONS)
    verdict = blind.verdict(replace(sample(60, 2), language=["fr"] * 60), {}, 0.01, 5, 999)
    assert verdict.moved == ["language"]
    assert verdict.untested["meaning"] == verdict.untested["topic"] == "the service has no encoder"


def test_answers_are_compared_with_the_first_window(reference: Reference) -> None:
    random = np.random.default_rng(4)
    window = replace(
        sample(60, 2),
        answer_length=random.poisson(20, 60).tolist(),
        confidence=random.normal(-0.4, 0.1, 60).tolist(),
    )
    first = reference.verdict(window, {}, 0.01, 1, 999)
    assert "later ones" in first.untested["confidence"]
    known = {"answer_length": window.answer_length, "confidence": window.confidence}
    unsure = replace(window, confidence=random.normal(-1.4, 0.1, 60).tolist())
    verdict = reference.verdict(unsure, known, 0.01, 2, 1999)
    assert verdict.moved == ["confidence"]
    assert {one.name: one.against for one in verdict.signals}["confidence"] == "first window"
    assert not verdict.untested


def test_false_alarms_of_whole_windows_keep_their_level() -> None:
    """Five signals at a level of 20%: at most that many windows, up to the counts' noise."""
    alarms = 0
    for seed in range(120):
        known = Reference(sample(120, 2 * seed), QUESTIONS)
        alarms += known.verdict(sample(40, 2 * seed + 1), {}, 0.2, seed, 99).alarm
    assert alarms <= 120 * 0.2 + 3 * (120 * 0.2 * 0.8) ** 0.5
    assert alarms > 0


def test_topics_are_named_by_training_questions(reference: Reference) -> None:
    assert len(reference.topics) == 3
    assert set(reference.topics) <= set(QUESTIONS)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"at least 50 different .*there are 7"):
        Reference(sample(7, 1), QUESTIONS[:7])


def test_many_rows_are_drawn_from_and_always_the_same() -> None:
    assert chosen_rows(7) == list(range(7))
    some = chosen_rows(5000, 300)
    assert some == chosen_rows(5000, 300) == sorted(set(some))
    assert len(some) == 300


def test_the_usual_words_for_a_psi() -> None:
    made = [Signal("length", "psi", value, 1.0, "") for value in (0.05, 0.2, 0.4)]
    assert [one.folk for one in made] == ["stable", "moved", "large"]
    assert Signal("meaning", "mmd", 0.4, 1.0, "").folk == ""
