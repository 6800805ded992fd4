"""Scores and intervals against the official script's rules, hand-computed values and scipy."""

from __future__ import annotations

import collections
import math
import re
import string

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from potstill.core import scoring
from potstill.errors import InputError


def official_normalize(text: str) -> str:
    """The SQuAD v1.1 script's own steps, written out plainly and apart from the product."""
    lowered = text.lower()
    without_punctuation = "".join(c for c in lowered if c not in set(string.punctuation))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", without_punctuation)
    return " ".join(without_articles.split())


def official_f1(prediction: str, truth: str) -> float:
    left = official_normalize(prediction).split()
    right = official_normalize(truth).split()
    same = sum((collections.Counter(left) & collections.Counter(right)).values())
    if same == 0:
        return 0
    precision = 1.0 * same / len(left)
    recall = 1.0 * same / len(right)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("", ""),
        ("“quoted”", "“quoted”"),  # the script strips ASCII punctuation only
    ],
)
def test_normalisation_follows_the_squad_script(text: str, expected: str) -> None:
    assert scoring.normalize_answer(text) == expected == official_normalize(text)


def test_f1_of_a_hand_computed_case() -> None:
    # prediction: {red, copper, still}, gold: {copper, still, house}: 2 shared, P = R = 2/3
    assert scoring.token_f1("the red copper still", ["copper still house"]) == pytest.approx(2 / 3)


def test_f1_takes_the_best_gold() -> None:
    assert scoring.token_f1("42 litres", ["forty", "42 litres"]) == 1.0


def test_exact_match_ignores_articles_case_and_punctuation() -> None:
    assert scoring.exact_match("The Blue Valve!", ["blue valve"]) == 1.0
    assert scoring.exact_match("blue valves", ["blue valve"]) == 0.0


def test_repeated_words_are_shared_no_more_often_than_both_hold_them() -> None:
    assert scoring.token_f1("no no no", ["no"]) == pytest.approx(0.5)


def test_empty_prediction_scores_zero_f1_but_matches_an_empty_gold_exactly() -> None:
    assert scoring.token_f1("", ["the"]) == 0.0
    assert scoring.exact_match("", ["the"]) == 1.0


def test_no_gold_answer_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no gold answer"):
        scoring.token_f1("x", [])
    with pytest.raises(TypeError):
        scoring.exact_match("x", "gold")


WORDS = st.lists(
    st.sampled_from(["the", "a", "An", "copper", "still.", "42", "é", "  ", "no-one"]), max_size=8
).map(" ".join)


@given(WORDS | st.text(max_size=30), st.lists(WORDS | st.text(max_size=30), min_size=1, max_size=3))
def test_f1_and_em_equal_the_official_script(prediction: str, golds: list[str]) -> None:
    assert scoring.token_f1(prediction, golds) == max(official_f1(prediction, g) for g in golds)
    assert scoring.exact_match(prediction, golds) == max(
        official_normalize(prediction) == official_normalize(g) for g in golds
    )


def sample(n: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 1.5, size=n)


def test_mean_interval_agrees_with_scipy() -> None:
    values = sample(80)
    ours = scoring.bootstrap(values.tolist(), seed=1, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean(), rel=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.n == 80


def test_ratio_interval_agrees_with_scipy_over_paired_resamples() -> None:
    weights = np.random.default_rng(2).integers(5, 300, size=60).astype(float)
    sums = weights * sample(60)
    ours = scoring.bootstrap_ratio(sums.tolist(), weights.tolist(), seed=3, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (sums, weights),
        lambda s, w, axis: s.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(sums.sum() / weights.sum(), rel=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_paired_interval_agrees_with_scipy_and_is_narrower_than_unpaired() -> None:
    a = sample(50)
    b = a + np.random.default_rng(4).normal(0.3, 0.1, size=50)
    ours = scoring.paired_bootstrap(b.tolist(), a.tolist(), seed=3, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (b - a,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)
    alone = scoring.bootstrap(b.tolist(), seed=3)
    assert ours.high - ours.low < (alone.high - alone.low) / 3
    assert ours.excludes_zero


def test_clustered_tokens_give_a_wider_interval_than_tokens_taken_as_independent() -> None:
    per_example = sample(40)
    weights = [100.0] * 40
    clustered = scoring.bootstrap_ratio((per_example * 100).tolist(), weights, seed=1)
    as_tokens = scoring.bootstrap(np.repeat(per_example, 100).tolist(), seed=1)
    assert clustered.value == pytest.approx(as_tokens.value)
    assert clustered.high - clustered.low > 5 * (as_tokens.high - as_tokens.low)


def test_a_transform_passes_through_value_and_interval() -> None:
    sums, weights = sample(30).tolist(), [2.0] * 30
    plain = scoring.bootstrap_ratio(sums, weights, seed=1)
    perplexity = scoring.bootstrap_ratio(sums, weights, seed=1, transform=np.exp)
    assert perplexity.value == pytest.approx(math.exp(plain.value))
    # quantiles interpolate between neighbouring draws, so exp passes through nearly, not exactly
    assert perplexity.low == pytest.approx(math.exp(plain.low), rel=1e-3)
    assert perplexity.high == pytest.approx(math.exp(plain.high), rel=1e-3)


def test_the_same_seed_gives_the_same_digits_in_any_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = sample(37).tolist()
    first = scoring.bootstrap(values, seed=11)
    assert scoring.bootstrap(values, seed=11) == first
    assert scoring.bootstrap(values, seed=12) != first
    monkeypatch.setattr(scoring, "_BLOCK_DRAWS", 400)
    assert scoring.bootstrap(values, seed=11) == first


def test_equal_sides_differ_by_exactly_nothing_and_are_not_called_different() -> None:
    values = sample(20).tolist()
    difference = scoring.paired_bootstrap(values, values, seed=1)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert not difference.excludes_zero


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "at least two"), ([1.0], "at least two"), ([1.0, math.nan], "not a finite")],
)
def test_what_has_no_interval_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scoring.bootstrap(values, seed=1)


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="different examples"):
        scoring.paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0], seed=1)


def test_weightless_examples_are_refused_only_when_all_are_weightless() -> None:
    with pytest.raises(InputError, match="no token"):
        scoring.bootstrap_ratio([0.0, 0.0], [0.0, 0.0], seed=1)
    some = scoring.bootstrap_ratio([0.0, 4.0], [0.0, 2.0], seed=1)
    assert (some.value, some.low, some.high) == (2.0, 2.0, 2.0)
