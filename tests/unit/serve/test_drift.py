"""The two-sample tests: against independent references, by hand, and by what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import cluster, special, stats

from potstill.serve import drift


def slow_mmd(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    """Equation 3 of the paper, pair by pair."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return math.exp(-sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / (2 * sigma**2))

    m, n = len(a), len(b)
    inside = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    other = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return inside + other - 2 * sum(k(x, y) for x in a for y in b) / (m * n)


def test_mmd_is_the_papers_and_its_p_value_that_of_all_permutations() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(size=(5, 3)), random.normal(0.8, 1, size=(4, 3))
    tested = drift.mmd_test(a, b, 1.3, random, draws=20_000)
    assert tested.value == pytest.approx(slow_mmd(a, b, 1.3), abs=1e-12)
    rows = np.concatenate([a, b])

    def statistic(x: np.ndarray, y: np.ndarray) -> float:
        return slow_mmd(rows[x.astype(int)], rows[y.astype(int)], 1.3)

    exact = stats.permutation_test(
        (np.arange(5.0), np.arange(5.0, 9.0)), statistic, alternative="greater", n_resamples=1e9
    )
    assert exact.statistic == pytest.approx(tested.value, abs=1e-12)
    assert tested.p == pytest.approx(exact.pvalue, abs=0.015)  # four standard errors


def test_mmd_needs_two_rows_on_each_side() -> None:
    with pytest.raises(ValueError, match="two rows"):
        drift.mmd_test(np.zeros((1, 2)), np.zeros((5, 2)), 1.0, np.random.default_rng(0))


def test_the_bandwidth_is_the_median_distance() -> None:
    assert drift.median_bandwidth([[0.0], [1.0], [3.0]]) == pytest.approx(2.0)
    assert drift.median_bandwidth([[2.0], [2.0], [2.0]]) == 1.0


def test_psi_is_both_divergences_together() -> None:
    a, b = np.array([30, 50, 20]), np.array([10, 20, 70])
    p, q = (a + 0.5) / (a + 0.5).sum(), (b + 0.5) / (b + 0.5).sum()
    expected = special.rel_entr(p, q).sum() + special.rel_entr(q, p).sum()
    assert float(drift.psi(a, b)) == pytest.approx(expected)
    by_hand = drift.psi([1, 3], [3, 1])  # (1.5 / 5, 3.5 / 5) against (3.5 / 5, 1.5 / 5)
    assert float(by_hand) == pytest.approx(2 * 0.4 * math.log(3.5 / 1.5))


def test_a_cell_that_nobody_is_in_counts_for_nothing() -> None:
    assert float(drift.psi([5, 0, 7], [2, 0, 9])) == float(drift.psi([5, 7], [2, 9]))


def test_psis_p_value_is_that_of_all_ways_to_deal() -> None:
    a, b = np.array([9, 3, 1]), np.array([1, 2, 4])
    value = float(drift.psi(a, b))
    dealt = stats.multivariate_hypergeom(a + b, 7)
    exact = sum(
        dealt.pmf([x, y, 7 - x - y])
        for x in range(8)
        for y in range(8 - x)
        if (7 - x - y) <= 5
        and x <= 10
        and y <= 5
        and float(drift.psi(a + b - [x, y, 7 - x - y], [x, y, 7 - x - y])) >= value - 1e-12
    )
    tested = drift.psi_test(a, b, np.random.default_rng(1), draws=40_000)
    assert tested.value == value
    assert tested.p == pytest.approx(exact, abs=0.004)


def test_cells_are_the_references_quantiles_and_part_no_ties() -> None:
    reference, window = list(range(1, 101)), [1, 11, 100, 250, -3]
    _, left, right = drift.numbers_test(reference, window, np.random.default_rng(0), 10, 9)
    assert left.tolist() == [10] * 10
    assert right.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    _, left, right = drift.numbers_test([5] * 30, [5] * 9 + [6], np.random.default_rng(0), 10, 9)
    assert (left.tolist(), right.sum()) == ([30] + [0] * 9, 10)
    assert right[[0, 9]].tolist() == [9, 1]  # what lies above the reference has a cell of its own


CLEAN = {
    "meaning": lambda random: drift.mmd_test(
        random.normal(size=(40, 4)), random.normal(size=(20, 4)), 2.0, random, 99
    ),
    "few values": lambda random: drift.numbers_test(
        random.poisson(6, 60), random.poisson(6, 30), random, 10, 99
    )[0],
    "all values differ": lambda random: drift.numbers_test(
        random.normal(size=60), random.normal(size=30), random, 10, 99
    )[0],
    "categories": lambda random: drift.psi_test(
        random.multinomial(60, [0.5, 0.3, 0.15, 0.05]),
        random.multinomial(30, [0.5, 0.3, 0.15, 0.05]),
        random,
        99,
    ),
}


@pytest.mark.parametrize("name", CLEAN)
def test_p_values_of_clean_samples_are_uniform(name: str) -> None:
    found = [CLEAN[name](np.random.default_rng([7, seed])).p for seed in range(600)]
    for level in (0.01, 0.05, 0.2, 0.5):  # never more often than the level, up to the counts' noise
        assert stats.binomtest(sum(p <= level for p in found), 600, level, "greater").pvalue > 1e-3
    if name == "all values differ" or name == "meaning":  # no ties: exactly uniform
        assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_a_planted_change_is_seen_by_each_test() -> None:
    random = np.random.default_rng(5)
    assert drift.mmd_test(
        random.normal(size=(80, 4)), random.normal(1, 1, size=(40, 4)), 2.0, random, 999
    ).p == pytest.approx(0.001)
    assert drift.numbers_test(random.poisson(6, 80), random.poisson(14, 40), random)[0].p < 0.002
    assert drift.psi_test([70, 10], [10, 30], random).p < 0.002


p_values = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1), min_size=1, max_size=6)


@given(p_values, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_does(
    found: dict[str, float], level: float
) -> None:
    adjusted = drift.holm(found)
    rejected, order = set(), sorted(found, key=lambda one: (found[one], one))
    for place, name in enumerate(order):  # the paper's own words
        if found[name] * (len(order) - place) > level:
            break
        rejected.add(name)
    assert {name for name, p in adjusted.items() if p <= level} == rejected
    assert all(adjusted[name] >= found[name] for name in found)


rows = st.lists(st.integers(0, 30), min_size=2, max_size=4).flatmap(
    lambda a: st.tuples(st.just(a), st.lists(st.integers(0, 30), min_size=len(a), max_size=len(a)))
)


@given(rows)
def test_psi_is_never_negative_and_has_no_direction(two: tuple[list[int], list[int]]) -> None:
    a, b = two
    if not sum(a) or not sum(b):
        return
    value = float(drift.psi(a, b))
    assert value >= 0
    assert value == pytest.approx(float(drift.psi(b, a)))
    assert float(drift.psi(a, a)) == pytest.approx(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_mmd_does_not_see_turns_and_shifts(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(12, 3)), random.normal(size=(6, 3))
    turn = stats.special_ortho_group.rvs(3, random_state=random)
    first = drift.mmd_test(a, b, 1.0, np.random.default_rng(0), 19)
    second = drift.mmd_test(a @ turn + 5, b @ turn + 5, 1.0, np.random.default_rng(0), 19)
    assert first.value == pytest.approx(second.value, abs=1e-9)
    assert first.p == second.p
    assert first.value <= 2


def test_centres_are_as_good_as_scipys_and_always_the_same() -> None:
    random = np.random.default_rng(2)
    points = np.concatenate([random.normal(5 * place, 1, size=(30, 5)) for place in range(6)])
    found = drift.centres(points, 6, np.random.default_rng(0))
    spread = drift.squared_distances(points, found).min(1).sum()
    other, _ = cluster.vq.kmeans2(points, 6, minit="++", rng=np.random.default_rng(0))
    assert spread <= 1.02 * drift.squared_distances(points, other).min(1).sum()
    assert np.bincount(drift.nearest_centre(points, found)).tolist() == [30] * 6
    assert np.array_equal(found, drift.centres(points, 6, np.random.default_rng(0)))


def test_no_more_centres_than_different_rows() -> None:
    assert len(drift.centres(np.ones((9, 2)), 4, np.random.default_rng(0))) == 1
