"""Scores of answers, and how far a score can be trusted: EM, F1 and bootstrap intervals.

In: texts, or one number (or one sum and one weight) an example. Out: floats and `Interval`s.
Knows nothing of models or files. Not imported by the command line, because it needs numpy.

Token-level figures (KL, agreement, log-loss) are averaged over TOKENS but resampled by EXAMPLE:
the tokens of one example are not independent, and an interval that pretended so would be far
too narrow. This is the cluster bootstrap (Davison & Hinkley 1997, section 3.8): every resample
draws whole examples with replacement and takes sum(values) / sum(weights) of what it drew.

All intervals are percentile intervals (Efron & Tibshirani 1993, chapter 13). Percentiles pass
through any increasing function, so a perplexity's interval is exp of its log-loss's interval.
The draw depends only on the seed, the number of examples and the number of resamples: two
metrics of the same examples see the same resamples, and each run gives the same digits.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import InputError

Floats = NDArray[np.float64]
Transform = Callable[[Floats], Floats]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLOCK_DRAWS = 2_000_000  # indices drawn at once: 16 MB, whatever the number of examples


def normalize_answer(text: str) -> str:
    """SQuAD v1.1 normalisation: lower case, no ASCII punctuation, no articles, single spaces.

    Source: the official evaluation script of Rajpurkar et al. 2016 (evaluate-v1.1.py).
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised gold answer, else 0.0.

    Errors: InputError if there is no gold answer to compare with.
    """
    _need_golds(golds)
    predicted = normalize_answer(prediction)
    return float(any(predicted == normalize_answer(gold) for gold in golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Best F1 (0 to 1) of shared normalised words over the gold answers, as SQuAD v1.1 scores.

    As in the official script, two texts that share no word score 0, also when both normalise
    to nothing. Errors: InputError if there is no gold answer to compare with.
    """
    _need_golds(golds)
    return max(_f1(prediction, gold) for gold in golds)


def _f1(prediction: str, gold: str) -> float:
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(gold).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision = shared / len(predicted)
    recall = shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def _need_golds(golds: Sequence[str]) -> None:
    if isinstance(golds, str):
        raise TypeError("golds is a sequence of answers, not one text")
    if not golds:
        raise InputError("There is no gold answer to score a prediction against.")


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; `n` is the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n"}`, as results.json and report.json hold it."""
        return asdict(self)


def bootstrap(
    values: Sequence[float], seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The mean of `values` (one an example) and its percentile bootstrap interval.

    Errors: InputError for fewer than two examples (no spread to measure) or a value that is
    not finite.
    """
    return bootstrap_ratio(values, [1.0] * len(values), seed, resamples, level)


def bootstrap_ratio(
    sums: Sequence[float],
    weights: Sequence[float],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    transform: Transform | None = None,
) -> Interval:
    """sum(sums) / sum(weights) with a cluster bootstrap interval over the examples.

    sums: one total an example (nats, agreeing tokens); weights: its number of tokens, >= 0.
    transform: an increasing function of the ratio, such as `np.exp` for a perplexity.
    Errors: InputError as for `bootstrap`, and where no example has any weight.
    """
    totals, shares = _columns(sums, weights)
    change = transform or _identity
    value = change(np.atleast_1d(totals.sum() / shares.sum()))[0]
    draws = np.concatenate(
        [
            change(_ratios(totals, shares, rows))
            for rows in _resampled_rows(len(totals), seed, resamples)
        ]
    )
    return _interval(float(value), draws, level, len(totals))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """mean(a) - mean(b) over the same examples in the same order, with its paired interval."""
    return paired_bootstrap_ratio(a, b, [1.0] * len(a), seed, resamples, level)


def paired_bootstrap_ratio(
    a: Sequence[float],
    b: Sequence[float],
    weights: Sequence[float],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    transform: Transform | None = None,
) -> Interval:
    """The difference of two `bootstrap_ratio` figures of the same examples, resampled together.

    Each resample draws examples once and scores both sides on them, so what is hard about an
    example cancels. Errors: InputError as there, and where the two sides differ in length.
    """
    left, shares = _columns(a, weights)
    right, _ = _columns(b, weights)
    change = transform or _identity
    whole = shares.sum()
    value = (
        change(np.atleast_1d(left.sum() / whole))[0] - change(np.atleast_1d(right.sum() / whole))[0]
    )
    draws = np.concatenate(
        [
            change(_ratios(left, shares, rows)) - change(_ratios(right, shares, rows))
            for rows in _resampled_rows(len(left), seed, resamples)
        ]
    )
    return _interval(float(value), draws, level, len(left))


def unpaired_bootstrap_ratio(
    a: Sequence[float],
    a_weights: Sequence[float],
    b: Sequence[float],
    b_weights: Sequence[float],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The difference of two `bootstrap_ratio` figures of different examples, each drawn by itself.

    `n` is the number of examples of both. Errors: InputError as there.
    """
    left, left_shares = _columns(a, a_weights)
    right, right_shares = _columns(b, b_weights)
    draws = [
        np.concatenate(
            [_ratios(totals, shares, rows) for rows in _resampled_rows(len(totals), own, resamples)]
        )
        for totals, shares, own in ((left, left_shares, seed), (right, right_shares, seed + 1))
    ]
    value = left.sum() / left_shares.sum() - right.sum() / right_shares.sum()
    return _interval(float(value), draws[0] - draws[1], level, len(left) + len(right))


def bootstrap_statistic(
    columns: Floats, statistic: Transform, seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """A figure of summed columns, such as a corpus BLEU, with its bootstrap interval.

    columns: [examples, k], what each example adds. statistic: [..., k] of sums -> [...].
    The draws are those of `bootstrap_ratio`. Errors: InputError as there.
    """
    table = _table(columns)
    draws = [statistic(sums) for sums in _resampled_sums(table, seed, resamples)]
    value = float(statistic(table.sum(axis=0)))
    return _interval(value, np.concatenate(draws), level, len(table))


def paired_bootstrap_statistic(
    a: Floats,
    b: Floats,
    statistic: Transform,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The difference of two `bootstrap_statistic` figures of the same examples."""
    left, right = _table(a), _table(b)
    if left.shape != right.shape:
        raise InputError(
            f"Cannot compare scores of different examples: {len(left)} against {len(right)}."
        )
    both = np.concatenate([left, right], axis=1)
    width = left.shape[1]

    def difference(sums: Floats) -> Floats:
        return statistic(sums[..., :width]) - statistic(sums[..., width:])

    return bootstrap_statistic(both, difference, seed, resamples, level)


def _table(columns: Floats) -> Floats:
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise InputError("A score is not a finite number, so no mean of it exists.")
    _need_two(len(table))
    return table


def _need_two(examples: int) -> None:
    if examples < 2:
        raise InputError(
            f"An interval needs at least two examples, and there are {examples}.",
            "Give more documents, or raise the share of rows that is kept for the test set.",
        )


def _resampled_sums(table: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """Blocks of summed columns, [block, k] each."""
    n = len(table)
    for rows in _resampled_rows(n, seed, resamples):
        places = rows + n * np.arange(len(rows))[:, None]
        times = np.bincount(places.ravel(), minlength=n * len(rows)).reshape(len(rows), n)
        yield times.astype(np.float64) @ table


def _columns(sums: Sequence[float], weights: Sequence[float]) -> tuple[Floats, Floats]:
    """Both as float64 vectors, checked: same length, at least two, finite, some weight."""
    totals = np.asarray(sums, dtype=np.float64)
    shares = np.asarray(weights, dtype=np.float64)
    if totals.ndim != 1 or totals.shape != shares.shape:
        raise InputError(
            f"Cannot compare scores of different examples: {totals.size} against {shares.size}."
        )
    _need_two(len(totals))
    if not (np.isfinite(totals).all() and np.isfinite(shares).all()):
        raise InputError("A score is not a finite number, so no mean of it exists.")
    if (shares < 0).any() or shares.sum() <= 0:
        raise InputError("The examples hold no token to average over.")
    return totals, shares


def _resampled_rows(n: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of row numbers, [block, n] each, together [resamples, n]."""
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_DRAWS // n)
    for start in range(0, resamples, block):
        yield random.integers(0, n, size=(min(block, resamples - start), n))


def _ratios(totals: Floats, shares: Floats, rows: NDArray[np.int64]) -> Floats:
    """One ratio a resample; one that drew only examples without weight takes the whole ratio."""
    weight = shares[rows].sum(axis=1)
    whole = totals.sum() / shares.sum()
    ratios = np.full(len(rows), whole, dtype=np.float64)
    np.divide(totals[rows].sum(axis=1), weight, out=ratios, where=weight > 0)
    return ratios


def _interval(value: float, draws: Floats, level: float, n: int) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def _identity(values: Floats) -> Floats:
    return values
