"""How many test rows it takes to see a difference, from how the rows that there are differ.

In: the paired differences of two models, one a row. Out: numbers of rows. Knows nothing of models.

For a mean of n paired differences with standard deviation s, a two-sided test at a level of
confidence (95%) sees a true difference d with a power (80%) if

    n >= ((z(1 - (1 - level) / 2) + z(power)) * s / d)^2

(the normal approximation, for example Fleiss, Levin & Paik 2003, section 4.3).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from potstill.errors import InputError
from potstill.evaluate.metrics import ExampleScores

POWER = 0.8
POINTS = (0.01, 0.02, 0.05)
"""Differences, of shares from 0 to 1, for which the rows are counted."""
COUNTED = ("f1", "em")


def rows_needed(
    spread: float, difference: float, level: float = 0.95, power: float = POWER
) -> int | None:
    """Rows to see a true mean difference with that power; None if it is zero: never.

    Of rows that all differ alike (a spread of 0) nothing can be said: None too.
    spread: standard deviation of the paired differences. Errors: InputError for a level or a power
    that is no probability.
    """
    if not (0 < level < 1 and 0 < power < 1):
        raise InputError(f"Neither {level} nor {power} may lie outside 0 to 1.")
    if difference == 0 or spread == 0:
        return None
    return max(2, math.ceil((_reach(level, power) * spread / abs(difference)) ** 2))


def smallest_seen(spread: float, rows: int, level: float = 0.95, power: float = POWER) -> float:
    """The smallest true mean difference that so many rows show with that power."""
    return _reach(level, power) * spread / math.sqrt(rows)


def _reach(level: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - (1 - level) / 2) + normal.inv_cdf(power)


def paired_power(
    a: Sequence[ExampleScores], b: Sequence[ExampleScores], level: float
) -> dict[str, dict[str, Any]]:
    """Of F1 and EM: `{"n", "spread", "smallest", "rows": {difference: rows}}`.

    smallest: the difference that these rows show four times of five. rows: how many show a
    difference of 1, 2 and 5 points, and one of the size that was measured (`measured`).
    """
    found = {}
    for name in COUNTED:
        pairs = [
            (getattr(x.answer, name), getattr(y.answer, name)) for x, y in zip(a, b, strict=True)
        ]
        apart = [one - other for one, other in pairs if one is not None and other is not None]
        if len(apart) >= 2:
            found[name] = paired_power_of(apart, level)
    return found


def paired_power_of(apart: Sequence[float], level: float) -> dict[str, Any]:
    """As `paired_power`, of paired differences, one a row. Errors: InputError for under two."""
    if len(apart) < 2:
        raise InputError(f"A spread needs at least two rows, and there are {len(apart)}.")
    spread = statistics.stdev(apart)
    needed: Mapping[str, int | None] = {
        **{f"{point:g}": rows_needed(spread, point, level) for point in POINTS},
        "measured": rows_needed(spread, statistics.fmean(apart), level),
    }
    return {
        "n": len(apart),
        "spread": spread,
        "smallest": smallest_seen(spread, len(apart), level) if spread else None,
        "rows": needed,
    }
