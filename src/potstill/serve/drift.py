"""Whether two samples come from one distribution: MMD for vectors, PSI for numbers and categories.

In: arrays, a generator of random numbers. Out: statistics and p-values. Pure numpy, no clock and no
file. Every p-value is a permutation p-value, (1 + draws at least as large) / (1 + draws): it is
right for any sample size as long as the two samples could have been dealt either way (Phipson and
Smyth, "Permutation P-values should never be zero", 2010). Knows nothing of requests.

MMD: Gretton, Borgwardt, Rasch, Schoelkopf, Smola, "A Kernel Two-Sample Test", JMLR 2012.
PSI: the population stability index, the symmetric Kullback-Leibler divergence of two histograms.
Several p-values become one decision by Holm, "A Simple Sequentially Rejective Multiple Test
Procedure", 1979, which holds its level however the signals hang together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DRAWS = 1999
CELLS = 10
HALF = 0.5
"""Added to each cell that holds anything, so that a logarithm of every share exists."""
BLOCK = 500_000  # numbers that are looked at at once: other threads are never kept waiting long
TIE = 1e-12  # what rounding may part


@dataclass(frozen=True)
class Tested:
    """A statistic and its p-value."""

    value: float
    p: float


def squared_distances(a: Any, b: Any) -> Floats:
    """|a_i - b_j|^2, [rows of a, rows of b], never below zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    found = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
    return np.asarray(np.maximum(found, 0.0), np.float64)


def median_bandwidth(rows: Any) -> float:
    """The kernel's sigma: the median distance between two different rows (Gretton et al., 8).

    1.0 where most rows are equal.
    """
    distances = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    middle = float(np.sqrt(np.median(distances))) if len(distances) else 0.0
    return middle or 1.0


def kernel(rows: Any, bandwidth: float) -> Floats:
    """exp(-|x - y|^2 / (2 sigma^2)) of all pairs, [n, n]."""
    return np.asarray(np.exp(squared_distances(rows, rows) / (-2 * bandwidth**2)))


def mmd_test(
    reference: Any,
    window: Any,
    bandwidth: float,
    random: np.random.Generator,
    draws: int = DRAWS,
) -> Tested:
    """The unbiased MMD^2 (Gretton et al., equation 3), [m, d] against [n, d], and its p-value.

    Around 0, also below it, where the two are alike. Errors: ValueError below two rows on a side.
    """
    m, n = len(reference), len(window)
    if m < 2 or n < 2:
        raise ValueError("MMD needs two rows on each side")
    values = kernel(np.concatenate([reference, window]), bandwidth)
    np.fill_diagonal(values, 0.0)
    sums, whole = values.sum(1), values.sum()

    def statistic(places: NDArray[np.int64]) -> Floats:
        """[..., n] places of the window's rows -> MMD^2. Only their own block is added up anew."""
        inside = values[places[..., :, None], places[..., None, :]].sum((-1, -2))
        across = sums[places].sum(-1) - inside
        outside = whole - 2 * across - inside
        return np.asarray(
            outside / (m * (m - 1)) + inside / (n * (n - 1)) - 2 * across / (m * n), np.float64
        )

    value = float(statistic(np.arange(m, m + n)))
    block = max(1, BLOCK // n**2)
    drawn = [
        statistic(_places(random, m + n, n, min(block, draws - start)))
        for start in range(0, draws, block)
    ]
    return Tested(value, p_value(value, np.concatenate(drawn)))


def _places(random: np.random.Generator, whole: int, n: int, draws: int) -> NDArray[np.int64]:
    """[draws, n]: n different places of `whole`, each set equally likely."""
    keys = random.random((draws, whole))
    return np.asarray(np.argpartition(keys, n - 1, axis=1)[:, :n], np.int64)


def p_value(value: float, drawn: Floats) -> float:
    """Share of the draws that are at least as large, the observed one among them."""
    slack = TIE * max(1.0, abs(value))
    return float((1 + (drawn >= value - slack).sum()) / (1 + len(drawn)))


def psi(reference: Any, window: Any) -> Floats:
    """The population stability index of counts, [..., cells] each -> [...].

    sum (p - q) ln(p / q) over the cells that hold anything, half a row added to each of them.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(window, np.float64)
    held = (a + b) > 0
    a, b = a + HALF * held, b + HALF * held
    p, q = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    ratio = np.divide(p, q, out=np.ones_like(p), where=held)
    return np.asarray(((p - q) * np.log(ratio)).sum(-1), np.float64)


def psi_test(
    reference: Any, window: Any, random: np.random.Generator, draws: int = DRAWS
) -> Tested:
    """PSI of two rows of counts over the same cells, and its p-value.

    The cells must not have been chosen by looking at which row is which. A draw deals all that was
    counted to the two sides anew (multivariate hypergeometric).
    """
    a, b = np.asarray(reference, np.int64), np.asarray(window, np.int64)
    value = float(psi(a, b))
    dealt = random.multivariate_hypergeometric(a + b, int(b.sum()), size=draws, method="marginals")
    return Tested(value, p_value(value, psi(a + b - dealt, dealt)))


def quantile_cells(reference: Any, cells: int) -> NDArray[np.int64]:
    """The cell of each value, from counts of the reference by ascending value, [..., values].

    Value v is in the cell floor(cells x share of the reference below v): the reference's quantiles
    are the borders, and equal values are never parted.
    """
    counts = np.asarray(reference, np.int64)
    below = np.cumsum(counts, axis=-1) - counts
    total = counts.sum(-1, keepdims=True)
    return np.asarray(np.minimum(cells * below // np.maximum(total, 1), cells - 1), np.int64)


def numbers_test(
    reference: Sequence[float],
    window: Sequence[float],
    random: np.random.Generator,
    cells: int = CELLS,
    draws: int = DRAWS,
) -> tuple[Tested, Counts, Counts]:
    """PSI of numbers in the cells of the reference's quantiles, its p-value, the two histograms.

    Each draw's cells come from the quantiles of its own reference side, so the p-value is exact
    though the observed cells look at the reference.
    """
    values, places = np.unique(np.concatenate([reference, window]), return_inverse=True)
    a = np.bincount(places[: len(reference)], minlength=len(values))
    b = np.bincount(places[len(reference) :], minlength=len(values))
    left, right = _in_cells(a[None], b[None], cells)
    value = float(psi(left, right)[0])
    drawn = []
    block = max(1, BLOCK // len(values))
    for start in range(0, draws, block):
        dealt = random.multivariate_hypergeometric(
            a + b, len(window), size=min(block, draws - start), method="marginals"
        )
        drawn.append(psi(*_in_cells(a + b - dealt, dealt, cells)))
    return Tested(value, p_value(value, np.concatenate(drawn))), left[0], right[0]


def _in_cells(reference: Counts, window: Counts, cells: int) -> tuple[Counts, Counts]:
    """Counts by value, [draws, values] -> counts by cell, [draws, cells]."""
    draws = len(reference)
    places = (quantile_cells(reference, cells) + cells * np.arange(draws)[:, None]).ravel()

    def counted(counts: Counts) -> Counts:
        sums = np.bincount(places, weights=counts.ravel(), minlength=cells * draws)
        return np.asarray(sums.reshape(draws, cells), np.int64)

    return counted(reference), counted(window)


def category_counts(
    categories: Sequence[Hashable], reference: Sequence[Hashable], window: Sequence[Hashable]
) -> tuple[Counts, Counts]:
    """How often each category is on each side, in the order of `categories`."""
    order = {one: place for place, one in enumerate(categories)}

    def counted(rows: Sequence[Hashable]) -> Counts:
        return np.bincount([order[one] for one in rows], minlength=len(order)).astype(np.int64)

    return counted(reference), counted(window)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: a signal is alarming at a level if its own is not above that level.

    Of k, the smallest is multiplied by k, the next by k - 1 and so on, none below the one before.
    """
    found: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda one: (p_values[one], one))):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        found[name] = highest
    return found


def centres(rows: Any, count: int, random: np.random.Generator, rounds: int = 50) -> Floats:
    """k-means by Lloyd's steps from k-means++ starts (Arthur and Vassilvitskii 2007), the best of
    four. rows [n, d] -> [count, d]; fewer where fewer rows differ."""
    points = np.asarray(rows, np.float64)
    best, least = points[:1], np.inf
    for _ in range(4):
        found = _starts(points, count, random)
        for _ in range(rounds):
            nearest = squared_distances(points, found).argmin(1)
            moved = found.copy()
            for place in range(len(found)):
                if (nearest == place).any():  # a centre that nobody is near stays where it is
                    moved[place] = points[nearest == place].mean(0)
            if np.array_equal(moved, found):
                break
            found = moved
        spread = float(squared_distances(points, found).min(1).sum())
        if spread < least:
            best, least = found, spread
    return best


def _starts(points: Floats, count: int, random: np.random.Generator) -> Floats:
    chosen = [points[random.integers(len(points))]]
    while len(chosen) < count:
        far = squared_distances(points, np.stack(chosen)).min(1)
        if far.sum() <= TIE:
            break
        chosen.append(points[random.choice(len(points), p=far / far.sum())])
    return np.stack(chosen)


def nearest_centre(rows: Any, found: Floats) -> NDArray[np.int64]:
    """The number of the nearest centre of each row."""
    return np.asarray(squared_distances(rows, found).argmin(1), np.int64)
