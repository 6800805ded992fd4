"""Limits a minute: never passed, hardly ever wasted, whatever the sizes and the moments."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.inference.limits import WINDOW, Adaptive, Limit


def flood(limit: Limit, amounts: list[float]) -> list[tuple[float, float]]:
    """(time, amount) of things that are sent as early as the limit lets them."""
    now, sent = 0.0, []
    for amount in amounts:
        while (wait := limit.wait(amount, now)) > 0:
            now += wait
        limit.take(amount, now)
        sent.append((now, amount))
    return sent


def most_in_a_minute(sent: list[tuple[float, float]]) -> float:
    return max(
        sum(amount for time, amount in sent if start <= time < start + 60.0) for start, _ in sent
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.lists(st.floats(0.0, 40.0), max_size=20),
)
def test_no_minute_has_more_requests_than_the_limit(per_minute: int, pauses: list[float]) -> None:
    limit, now, sent = Limit(per_minute), 0.0, []
    for step in range(2 * per_minute):
        now += pauses[step] if step < len(pauses) else 0.0
        while (wait := limit.wait(1, now)) > 0:
            now += wait
        limit.take(1, now)
        sent.append((now, 1.0))
    assert most_in_a_minute(sent) <= per_minute


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1.0, 400.0), min_size=1, max_size=60))
def test_no_minute_has_more_tokens_than_the_limit(amounts: list[float]) -> None:
    assert most_in_a_minute(flood(Limit(1000), amounts)) <= 1000 + 1e-6


@pytest.mark.parametrize("per_minute", [10, 60, 600, 5000])
def test_a_busy_client_uses_the_limit(per_minute: int) -> None:
    sent = flood(Limit(per_minute), [1.0] * (3 * per_minute))
    assert len(sent) / (sent[-1][0] + 60 / per_minute) * 60 > 0.97 * per_minute


def test_what_is_sent_flows_evenly() -> None:
    times = [time for time, _ in flood(Limit(600), [1.0] * 600)]
    assert sum(time < 1.0 for time in times) <= 30  # two seconds' worth, and what a third earns
    assert all(later - time < 0.2 for time, later in pairwise(times))


def test_a_short_reply_frees_what_was_set_aside() -> None:
    limit = Limit(1000)
    entry = limit.take(900, 0.0)
    assert limit.wait(500, 30.0) > 0
    limit.settle(entry, 100)
    assert limit.wait(500, 30.0) == 0


def test_what_settles_after_its_minute_changes_nothing() -> None:
    limit = Limit(100)
    old = limit.take(50, 0.0)
    limit.take(60, WINDOW + 1)
    limit.settle(old, 1)
    assert limit.wait(60, WINDOW + 2) > 50
    assert limit.wait(40, WINDOW + 50) == 0


def test_what_is_larger_than_the_limit_goes_alone() -> None:
    limit = Limit(100)
    assert limit.wait(500, 0.0) == 0
    limit.take(500, 0.0)
    assert limit.wait(1, 30.0) > 0
    assert limit.wait(1, 400.0) == 0


def test_no_limit_never_waits() -> None:
    limit = Limit(None)
    for _ in range(1000):
        limit.take(1e6, 0.0)
    assert limit.wait(1e9, 0.0) == 0


def test_width_halves_once_for_a_burst_of_refusals_and_comes_back() -> None:
    width = Adaptive(16)
    for _ in range(5):
        width.overloaded(sent=1.0, now=2.0)
    assert int(width) == 8
    width.overloaded(sent=2.5, now=3.0)
    assert int(width) == 4
    for _ in range(200):
        width.went_well()
    assert int(width) == 16
    for now in range(10, 30):
        width.overloaded(sent=now, now=now)
    assert int(width) == 1
