"""Figures of sums against plain formulas, power against its formula and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
from scipy import stats

from potstill.core.scoring import bootstrap_statistic, paired_bootstrap_statistic
from potstill.errors import InputError
from potstill.evaluate.answer_scores import Gold, score_answer
from potstill.evaluate.metrics import ExampleScores, calibration_error, differences, figures
from potstill.evaluate.power import paired_power, rows_needed, smallest_seen

GOLDS = ["it opens at 42 turns", "the valve is painted teal", "at 7 in the morning", "yes"]


def scores(answers: list[str], golds: list[str] = GOLDS) -> list[ExampleScores]:
    return [
        ExampleScores(None, score_answer(said, Gold(str(n), (gold,))))
        for n, (said, gold) in enumerate(zip(answers, golds, strict=True))
    ]


def test_a_corpus_bleu_leaves_short_golds_out_and_says_how_many_are_left() -> None:
    said = ["it opens at 40 turns", "the valve is teal", "at 7 in the evening", "yes"]
    found = figures(scores(said), seed=1, resamples=200, level=0.95)
    assert found["corpus_bleu"].n == 3
    package = sacrebleu.corpus_bleu(said[:3], [GOLDS[:3]]).score / 100
    assert found["corpus_bleu"].value == pytest.approx(package, abs=1e-9)
    assert found["f1"].n == 4
    assert "grounded" not in found  # no row has a passage


def test_short_answers_alone_have_no_corpus_bleu_rather_than_zero() -> None:
    found = figures(scores(["yes", "no"], ["yes", "no"]), seed=1, resamples=200, level=0.95)
    assert "corpus_bleu" not in found
    assert found["em"].value == found["chrf"].value == 1.0


def test_a_difference_is_over_the_rows_that_both_have() -> None:
    golds = [Gold(str(n), ("42 turns of the valve",), passage="42 turns") for n in range(5)]
    left = [score_answer("42 turns", gold) for gold in golds]
    right = [score_answer("I do not know" if n < 2 else "42", g) for n, g in enumerate(golds)]
    named = {
        "distilled": [ExampleScores(None, one) for one in left],
        "undistilled": [ExampleScores(None, one) for one in right],
    }
    pair = differences(named, seed=1, resamples=200, level=0.95)["distilled_minus_undistilled"]
    assert pair["grounded"]["n"] == 3  # a refusal claims nothing that could be supported
    assert pair["refusal_rate"]["value"] == pytest.approx(-0.4)
    assert pair["f1"]["n"] == 5


def test_the_calibration_error_of_a_hand_made_case() -> None:
    # two bins: 10 rows at 0.9 of which 6 are right, 10 at 0.4 of which 5 are right
    sums = np.array([20.0, 10 * 0.9 - 6, 10 * 0.4 - 5])
    assert calibration_error(sums) == pytest.approx((3 + 1) / 20)


def test_bootstrapped_sums_equal_a_mean_where_the_statistic_is_one() -> None:
    random = np.random.default_rng(0)
    values = random.normal(2.0, 1.0, 60)
    columns = np.stack([values, np.ones(60)], axis=1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    found = bootstrap_statistic(columns, mean, seed=5, resamples=4000)
    package = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((package.low, package.high), abs=0.03)
    same = paired_bootstrap_statistic(columns, columns, mean, seed=5)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(InputError, match="different examples"):
        paired_bootstrap_statistic(columns, columns[:4], mean, seed=5)
    with pytest.raises(InputError, match="at least two"):
        bootstrap_statistic(columns[:1], mean, seed=5)
    with pytest.raises(InputError, match="not a finite"):
        bootstrap_statistic(columns * math.nan, mean, seed=5)


def test_rows_needed_are_those_of_the_formula() -> None:
    reach = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert rows_needed(0.4, 0.05) == math.ceil((reach * 0.4 / 0.05) ** 2) == 503
    assert rows_needed(0.4, 0.0) is None
    assert smallest_seen(0.4, 503) == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(InputError):
        rows_needed(0.4, 0.1, power=1.0)


def test_so_many_rows_see_the_difference_four_times_of_five() -> None:
    random = np.random.default_rng(7)
    rows = rows_needed(1.0, 0.3) or 0
    drawn = random.normal(0.3, 1.0, size=(4000, rows))
    z = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(rows))
    assert (np.abs(z) > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.03)


def test_power_of_two_models_is_counted_from_their_rows() -> None:
    a, b = scores(GOLDS), scores(["no", *GOLDS[1:]])
    found = paired_power(a, b, 0.95)["em"]
    spread = np.std([1, 0, 0, 0], ddof=1)
    assert found["spread"] == pytest.approx(spread)
    assert found["rows"]["measured"] == rows_needed(float(spread), 0.25)
    assert found["rows"]["0.01"] > found["rows"]["0.05"] > 4
    alike = paired_power(a, a, 0.95)["em"]
    assert alike["smallest"] is None  # rows that all differ alike say nothing of a spread
    assert set(alike["rows"].values()) == {None}
