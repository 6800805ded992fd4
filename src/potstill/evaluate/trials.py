"""Two versions side by side on live traffic: votes, latency, tokens, refusals, failures.

In: one row a request and one a vote, each with its version and its unit (what was assigned as one:
a key, a conversation, a request). Out: figures of both, their differences with intervals, and what
can be said. Pure: knows no file and no service.

    votes      share of thumbs up; the difference with Newcombe's interval (1998, method 10, from
               Wilson's), and Fisher's exact test, two-sided
    others     means; the difference with a bootstrap interval

Requests of one unit hang together: one key's owner is pleased or is not. Where units have several
requests, intervals are of a bootstrap that draws whole units of each version (the cluster
bootstrap, as in `core/scoring.py`), and nothing is claimed from fewer than `FEWEST_UNITS` of them.
A difference of votes is claimed where its interval and the exact test agree. Where they do not,
`needed` says how many votes of each version would show a difference of that size in four of five
trials (`power.py`), times what the hanging together costs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from potstill.core.scoring import bootstrap_ratio, unpaired_bootstrap_ratio
from potstill.evaluate.power import rows_needed

FEWEST_UNITS = 8
TIMES = ("first_token_seconds", "seconds", "completion_tokens")
SHARES = ("refused", "failed")


@dataclass(frozen=True)
class Votes:
    """Thumbs of one version: `up` of `all`."""

    up: int
    all: int

    @property
    def share(self) -> float:
        """Of thumbs up; nan of none."""
        return self.up / self.all if self.all else math.nan


def compare_versions(
    requests: Sequence[Mapping[str, Any]],
    votes: Sequence[Mapping[str, Any]],
    current: str,
    candidate: str,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """`votes` (counts, difference, p, outcome, needed), `figures` (name -> current, candidate,
    difference, outcome), `requests`, `said`.

    requests: rows with version, unit, and `TIMES` and `SHARES` (None: unknown). votes: rows with
    version, unit, up (whether the thumb is up).
    """
    found = _votes(votes, current, candidate, seed, resamples, level)
    figures = {}
    for name in (*TIMES, *SHARES):
        figure = _figure(requests, name, current, candidate, seed, resamples, level)
        if figure is not None:
            figures[name] = figure
    return {
        "current": current,
        "candidate": candidate,
        "level": level,
        "requests": {
            version: sum(row["version"] == version for row in requests)
            for version in (current, candidate)
        },
        "votes": found,
        "figures": figures,
        "said": [_vote_words(found, current, candidate)],
    }


def _votes(
    votes: Sequence[Mapping[str, Any]],
    current: str,
    candidate: str,
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, Any]:
    sides = {
        name: [row for row in votes if row["version"] == name] for name in (current, candidate)
    }
    counted = {name: Votes(sum(map(_up, rows)), len(rows)) for name, rows in sides.items()}
    units = {name: len({row["unit"] for row in rows}) for name, rows in sides.items()}
    a, b = counted[candidate], counted[current]
    found: dict[str, Any] = {
        "current": {"up": b.up, "all": b.all, "units": units[current]},
        "candidate": {"up": a.up, "all": a.all, "units": units[candidate]},
        "difference": None,
        "p": None,
        "outcome": "unclear",
        "needed": None,
        "clustered": any(units[name] < len(rows) for name, rows in sides.items()),
    }  # fmt: skip
    if not (a.all and b.all):
        return found
    low, high = newcombe(a, b, level)
    found["p"] = fisher_exact(a, b)
    design = 1.0
    if found["clustered"] and min(units.values()) >= 2:
        plain = high - low
        made = unpaired_bootstrap_ratio(
            *_by_unit([(row["unit"], float(_up(row))) for row in sides[candidate]]),
            *_by_unit([(row["unit"], float(_up(row))) for row in sides[current]]),
            seed,
            resamples,
            level,
        )
        low, high = min(low, made.low), max(high, made.high)
        design = max(1.0, ((high - low) / plain) ** 2)
    value = a.share - b.share
    found["difference"] = {"value": value, "low": low, "high": high}
    told = (low > 0 or high < 0) and found["p"] < 1 - level
    enough = not found["clustered"] or min(units.values()) >= FEWEST_UNITS
    if told and enough:
        found["outcome"] = "better" if value > 0 else "worse"
    else:
        spread = math.sqrt(a.share * (1 - a.share) + b.share * (1 - b.share))
        needed = rows_needed(spread, value, level)
        found["needed"] = math.ceil(needed * design) if needed else None
    return found


def _up(row: Mapping[str, Any]) -> bool:
    return bool(row["up"])


def newcombe(a: Votes, b: Votes, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two shares, a's minus b's, each of at least one vote.

    Source: Newcombe, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17 (1998), method 10.
    """
    (a_low, a_high), (b_low, b_high) = (wilson(one, level) for one in (a, b))
    value = a.share - b.share
    return (
        value - math.hypot(a.share - a_low, b_high - b.share),
        value + math.hypot(a_high - a.share, b.share - b_low),
    )


def wilson(votes: Votes, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (1927), without continuity correction."""
    z = NormalDist().inv_cdf(1 - (1 - level) / 2)
    n, p = votes.all, votes.share
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - reach, middle + reach


def fisher_exact(a: Votes, b: Votes) -> float:
    """Two-sided p of Fisher's exact test: the chance of all tables with these sums that are no
    likelier than the one that was seen."""
    up, whole = a.up + b.up, a.all + b.all

    def chance(x: int) -> float:
        return _log_choose(a.all, x) + _log_choose(b.all, up - x) - _log_choose(whole, up)

    seen = chance(a.up)
    tables = range(max(0, up - b.all), min(up, a.all) + 1)
    return min(1.0, sum(math.exp(p) for x in tables if (p := chance(x)) <= seen + 1e-7))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _figure(
    requests: Sequence[Mapping[str, Any]],
    name: str,
    current: str,
    candidate: str,
    seed: int,
    resamples: int,
    level: float,
) -> dict[str, Any] | None:
    """A mean of both versions and its difference; None where one has no such request."""
    sides = {
        version: [
            (str(row["unit"]), float(row[name]))
            for row in requests
            if row["version"] == version and row.get(name) is not None
        ]
        for version in (current, candidate)
    }
    if not all(sides.values()):
        return None
    found: dict[str, Any] = {
        side: {"value": sum(value for _, value in sides[version]) / len(sides[version]),
               "n": len(sides[version])}
        for side, version in (("current", current), ("candidate", candidate))
    }  # fmt: skip
    found["difference"], found["outcome"] = None, "unclear"
    grouped = {version: _by_unit(rows) for version, rows in sides.items()}
    if min(len(sums) for sums, _ in grouped.values()) < 2:
        return found
    for side, version in (("current", current), ("candidate", candidate)):
        found[side] |= bootstrap_ratio(*grouped[version], seed, resamples, level).as_dict() | {
            "n": len(sides[version])
        }
    made = unpaired_bootstrap_ratio(*grouped[candidate], *grouped[current], seed, resamples, level)
    found["difference"] = made.as_dict()
    enough = min(len(sums) for sums, _ in grouped.values()) >= FEWEST_UNITS
    if enough and made.excludes_zero:
        found["outcome"] = "higher" if made.value > 0 else "lower"
    return found


def _by_unit(rows: Sequence[tuple[str, float]]) -> tuple[list[float], list[float]]:
    """Sum and number of each unit's values."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for unit, value in rows:
        sums[unit] += value
        counts[unit] += 1
    order = sorted(sums)
    return [sums[unit] for unit in order], [counts[unit] for unit in order]


def _vote_words(votes: Mapping[str, Any], current: str, candidate: str) -> str:
    """What the votes say, in one sentence."""
    if votes["difference"] is None:
        lacking = [
            name
            for name, side in ((current, "current"), (candidate, "candidate"))
            if not votes[side]["all"]
        ]
        return f"Nothing can be told yet: there is no vote on {' and none on '.join(lacking)}."
    if votes["outcome"] == "better":
        return f"Answers of {candidate} are liked more than those of {current}."
    if votes["outcome"] == "worse":
        return f"Answers of {candidate} are liked less than those of {current}."
    units = min(votes[side]["units"] for side in ("current", "candidate"))
    if votes["clustered"] and units < FEWEST_UNITS:
        return (
            f"Nothing can be told yet: the votes on one version come from {units} keys or "
            f"conversations, and at least {FEWEST_UNITS} of each are needed."
        )
    if votes["needed"] is None:
        return "Nothing can be told yet: both are liked alike so far."
    missing = max(votes["needed"] - votes[side]["all"] for side in ("current", "candidate"))
    if missing <= 0:
        return "Nothing can be told yet, though a difference of this size should show by now."
    return (
        f"Nothing can be told yet: it would take about {votes['needed']} votes on each version to "
        f"show a difference of this size, up to {missing} more than there are."
    )
