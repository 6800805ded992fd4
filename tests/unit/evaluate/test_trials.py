"""Two versions on live traffic: checked against scipy, and silent where nothing can be told."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from potstill.core.scoring import unpaired_bootstrap_ratio
from potstill.evaluate.trials import Votes, compare_versions, fisher_exact, newcombe, wilson

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=100, deadline=None)
@given(counts, counts)
def test_the_exact_test_and_wilson_s_interval_are_scipy_s(
    a: tuple[int, int], b: tuple[int, int]
) -> None:
    table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
    assert fisher_exact(Votes(*a), Votes(*b)) == pytest.approx(
        stats.fisher_exact(table).pvalue, abs=1e-6
    )
    reference = stats.binomtest(*a).proportion_ci(0.95, "wilson")
    assert wilson(Votes(*a)) == pytest.approx((reference.low, reference.high), abs=1e-9)
    low, high = newcombe(Votes(*a), Votes(*b))
    assert -1 - 1e-9 <= low <= Votes(*a).share - Votes(*b).share <= high <= 1 + 1e-9


def test_newcombe_s_own_example() -> None:
    # 56/70 against 48/80: Newcombe 1998, table II, method 10
    assert newcombe(Votes(56, 70), Votes(48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_two_samples_are_drawn_apart() -> None:
    lot = np.random.default_rng(4)
    a, b = lot.normal(1.0, 1.0, 200), lot.normal(0.4, 2.0, 100)
    made = unpaired_bootstrap_ratio(a, [1.0] * 200, b, [1.0] * 100, seed=1, resamples=4000)
    reach = 1.96 * np.sqrt(a.var() / 200 + b.var() / 100)
    assert made.value == pytest.approx(a.mean() - b.mean())
    assert made.low == pytest.approx(made.value - reach, abs=0.05)
    assert made.high == pytest.approx(made.value + reach, abs=0.05)


def traffic(
    ups: dict[str, float], count: int, each: int = 1, seed: int = 1
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`count` units of each version with `each` requests and votes; a unit votes all alike."""
    lot = random.Random(seed)
    requests, votes = [], []
    for version, share in ups.items():
        for number in range(count):
            up = lot.random() < share
            unit = f"{version}-{number}"
            for _ in range(each):
                requests.append(
                    {
                        "version": version,
                        "unit": unit,
                        "first_token_seconds": lot.uniform(0.1, 0.2) + (version == "new") * 0.1,
                        "seconds": 1.0,
                        "completion_tokens": lot.randint(5, 15),
                        "refused": lot.random() < 0.1,
                        "failed": False,
                    }
                )
                votes.append({"version": version, "unit": unit, "up": up})
    return requests, votes


def test_a_clear_difference_is_told() -> None:
    found = compare_versions(*traffic({"old": 0.4, "new": 0.8}, 100), "old", "new")
    assert found["votes"]["outcome"] == "better"
    assert found["votes"]["needed"] is None
    assert found["votes"]["p"] < 0.001
    assert found["said"] == ["Answers of new are liked more than those of old."]
    assert found["figures"]["first_token_seconds"]["outcome"] == "higher"
    assert found["figures"]["completion_tokens"]["outcome"] == "unclear"
    assert found["figures"]["failed"]["difference"]["value"] == 0
    worse = compare_versions(*traffic({"old": 0.8, "new": 0.4}, 100), "old", "new")
    assert worse["said"] == ["Answers of new are liked less than those of old."]


def test_few_votes_say_how_many_more() -> None:
    votes = [{"version": "old", "unit": f"o{n}", "up": n < 5} for n in range(10)]
    votes += [{"version": "new", "unit": f"n{n}", "up": n < 7} for n in range(10)]
    found = compare_versions([], votes, "old", "new")["votes"]
    assert found["outcome"] == "unclear"
    assert found["p"] == pytest.approx(stats.fisher_exact([[7, 3], [5, 5]]).pvalue)
    # two shares of 0.5 and 0.7, 95% and 80%: (1.96 + 0.8416)^2 * (0.25 + 0.21) / 0.04
    assert found["needed"] == 91
    (said,) = compare_versions([], votes, "old", "new")["said"]
    assert "about 91 votes on each version" in said
    assert "81 more" in said


def test_votes_of_one_key_are_not_many_votes() -> None:
    requests, votes = traffic({"old": 0.4, "new": 0.8}, 3, each=40, seed=2)
    found = compare_versions(requests, votes, "old", "new")
    assert found["votes"]["clustered"]
    assert found["votes"]["outcome"] == "unclear"
    assert "keys or conversations" in found["said"][0]
    alone = compare_versions(*traffic({"old": 0.45, "new": 0.65}, 60, seed=6), "old", "new")
    together = compare_versions(
        *traffic({"old": 0.45, "new": 0.65}, 60, each=10, seed=6), "old", "new"
    )
    width = {
        name: one["votes"]["difference"]["high"] - one["votes"]["difference"]["low"]
        for name, one in (("alone", alone), ("together", together))
    }
    # Ten votes that are one are worth one: the interval is no narrower.
    assert width["together"] > 0.9 * width["alone"]


def test_nothing_is_told_of_nothing() -> None:
    found = compare_versions([], [], "old", "new")
    assert found["figures"] == {}
    assert found["said"] == ["Nothing can be told yet: there is no vote on old and none on new."]
    same = [
        {"version": one, "unit": f"{one}{n}", "up": True}
        for one in ("old", "new")
        for n in range(9)
    ]
    assert "liked alike" in compare_versions([], same, "old", "new")["said"][0]


def test_the_same_version_twice_is_rarely_called_different() -> None:
    told = 0
    for seed in range(150):
        requests, votes = traffic({"old": 0.6, "new": 0.6}, 40, each=3, seed=seed)
        found = compare_versions(requests[:0], votes, "old", "new", resamples=300)
        told += found["votes"]["outcome"] != "unclear"
    assert told <= 0.08 * 150
