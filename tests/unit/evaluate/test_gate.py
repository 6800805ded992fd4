"""The gate claims what the rows can carry, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from potstill.errors import InputError
from potstill.evaluate.gate import fewest_rows, gate

Scores = dict[str, tuple[float, float]]
"""Row -> F1 of the current student and of the candidate."""


def lines(scores: Scores, **more: Any) -> list[dict[str, Any]]:
    made = []
    for name, pair in scores.items():
        for model, value in zip(("undistilled", "distilled"), pair, strict=True):
            made.append(
                {"id": name, "model": model, "f1": value, "em": float(value == 1.0), **more}
            )
        made.append({"id": name, "model": "teacher", "f1": 1.0, "em": 1.0})
    return made


def drawn(prefix: str, count: int, gain: float, seed: int = 1) -> Scores:
    lot = random.Random(seed)
    found = {}
    for number in range(count):
        before = lot.uniform(0.2, 0.7)
        found[f"{prefix}{number}"] = (before, min(1.0, before + gain + lot.uniform(-0.1, 0.1)))
    return found


def test_better_on_the_target_and_not_worse_elsewhere_passes() -> None:
    old, new = drawn("o", 40, 0.0), drawn("n", 20, 0.25)
    found = gate(lines(old | new), new, seed=3)
    assert found["state"] == "passed"
    assert found["rows"] == {"kept": 40, "target": 20}
    figure = found["target"]["f1"]
    assert figure["outcome"] == "better"
    assert figure["current"] == pytest.approx(np.mean([pair[0] for pair in new.values()]))
    apart = np.array([b - a for a, b in new.values()])
    assert figure["value"] == pytest.approx(apart.mean())
    reference = scipy_bootstrap(
        (apart,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert figure["low"] == pytest.approx(reference.low, abs=0.01)
    assert figure["high"] == pytest.approx(reference.high, abs=0.01)


def test_worse_anywhere_fails_whatever_the_target_says() -> None:
    old, new = drawn("o", 40, -0.2), drawn("n", 20, 0.25)
    found = gate(lines(old | new), new)
    assert found["state"] == "failed"
    assert any("old rows" in reason for reason in found["reasons"])
    worse = gate(lines(drawn("o", 40, 0.0) | drawn("n", 20, -0.25)), drawn("n", 20, -0.25))
    assert worse["state"] == "failed"


def test_a_divergence_is_better_when_it_is_lower_and_counts_by_tokens() -> None:
    old, new = drawn("o", 12, 0.0), drawn("n", 10, 0.3)
    said = lines(old | new)
    for number, line in enumerate(said):
        line |= {"tokens": 1 + number % 7, "kl": 0.2 if line["model"] == "undistilled" else 0.9}
    found = gate(said, new)
    assert found["kept"]["kl"]["outcome"] == "worse"
    assert found["kept"]["kl"]["value"] == pytest.approx(0.7)
    assert found["state"] == "failed"


def test_few_rows_prove_nothing_though_all_got_better() -> None:
    assert [fewest_rows(level) for level in (0.9, 0.95, 0.99)] == [5, 6, 8]
    old = drawn("o", 30, 0.0)
    for count, state in ((5, "unproven"), (6, "passed")):
        new = drawn("n", count, 0.3)
        found = gate(lines(old | new), new)
        assert found["target"]["f1"]["outcome"] == "better"
        assert found["state"] == state
    assert gate(lines(old | drawn("n", 1, 0.3)), ["n0"])["state"] == "unproven"


def test_an_interval_that_holds_zero_says_how_many_rows_would_tell() -> None:
    lot = random.Random(5)
    new = {f"n{k}": (0.5, 0.5 + lot.choice((-0.4, 0.5))) for k in range(12)}
    found = gate(lines(drawn("o", 30, 0.0) | new), new)
    assert found["state"] == "unproven"
    apart = [b - a for a, b in new.values()]
    spread, mean = np.std(apart, ddof=1), np.mean(apart)
    assert found["needed"] == max(2, int(np.ceil(((1.959964 + 0.841621) * spread / mean) ** 2)))


def test_the_same_students_are_told_apart_by_no_seed() -> None:
    same = {f"n{k}": (k / 20, k / 20) for k in range(20)}
    found = gate(lines(same), [f"n{k}" for k in range(10)])
    assert found["state"] == "unproven"
    assert all(one["value"] == 0 for one in found["kept"].values())


def test_a_gate_without_a_false_claim_lets_chance_through_as_rarely_as_it_says() -> None:
    passed = 0
    for seed in range(200):
        lot = random.Random(seed)
        new = {f"n{k}": (0.5, 0.5 + lot.gauss(0, 0.2)) for k in range(20)}
        passed += gate(lines(drawn("o", 8, 0.0) | new), new, resamples=300)["state"] == "passed"
    assert passed <= 14  # 2.5% of 200 is 5; a bootstrap of 20 rows is a little too sure


def test_few_old_rows_do_not_show_that_nothing_got_worse() -> None:
    new = drawn("n", 20, 0.3)
    found = gate(lines(drawn("o", 5, 0.0) | new), new)
    assert found["state"] == "unproven"
    assert "5 old rows are too few" in found["reasons"][0]
    found = gate(lines(drawn("o", 40, 0.0) | new), new)
    apart = [b - a for a, b in drawn("o", 40, 0.0).values()]
    expected = (1.959964 + 0.841621) * np.std(apart, ddof=1) / 40**0.5
    assert found["smallest_drop"] == pytest.approx(expected, rel=1e-5)


def test_mistakes() -> None:
    new = drawn("n", 8, 0.2)
    with pytest.raises(InputError, match="There is no gate by length"):
        gate(lines(new), new, metric="length")
    with pytest.raises(InputError, match="not the same rows"):
        gate(lines(new)[1:], new)
