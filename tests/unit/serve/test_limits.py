"""Windows, queues and what is given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.serve.admission import Gate
from potstill.serve.limits import MINUTE, KeyLimits, Limiter, Window
from potstill.serve.problems import ApiError


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), max_size=60), st.integers(1, 100))
def test_no_minute_holds_more_than_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    window, now, sent = Window(), 0.0, []
    for pause, amount in steps:
        now += pause
        wait = window.wait(amount, limit, now)
        if wait == 0:
            window.add(min(amount, limit), now)
            sent.append((now, min(amount, limit)))
        else:
            assert 0 < wait <= MINUTE + 1e-6
            later = Window()
            for time, was in sent:
                later.add(was, time)
            assert later.wait(amount, limit, now + wait + 1e-6) == 0  # what it promised is true
    for start, _ in sent:
        inside = sum(amount for time, amount in sent if start <= time < start + MINUTE - 1e-6)
        assert inside <= limit


def test_tokens_are_settled_and_places_given_back() -> None:
    now = [0.0]
    limiter = Limiter(lambda: now[0])
    limits = KeyLimits(tokens_per_minute=100, concurrency=1)
    lease = limiter.admit("a", limits, 90)
    with pytest.raises(ApiError, match="at once"):
        limiter.admit("a", limits, 5)
    lease.settle(10)
    lease.settle(10)
    second = limiter.admit("a", limits, 90)
    second.settle(90)
    with pytest.raises(ApiError, match="100 tokens a minute") as caught:
        limiter.admit("a", limits, 1)
    assert caught.value.headers == {"Retry-After": "60"}
    limiter.admit("b", limits, 90)
    now[0] = 60.5
    limiter.admit("a", limits, 100)


def test_a_refused_request_counts_for_nothing() -> None:
    limiter = Limiter(lambda: 0.0)
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=10)
    limiter.admit("a", limits, 8).settle(8)
    for _ in range(5):
        with pytest.raises(ApiError, match="tokens"):
            limiter.admit("a", limits, 8)
    limiter.admit("a", limits, 2)


def test_first_come_first_served_and_a_place_is_never_lost() -> None:
    async def work() -> None:
        gate = Gate(2, 3, 60.0)
        order: list[int] = []

        async def one(number: int, hold: float) -> None:
            entered = await gate.enter()
            order.append(number)
            await asyncio.sleep(hold)
            gate.leave(entered)

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(one(number, 0.02)))
            await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (2, 3)
        with pytest.raises(ApiError) as caught:
            await gate.enter()
        assert caught.value.status == 429
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 4]
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(work())


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 4))
def test_cancelling_at_any_moment_leaks_no_place(steps: list[tuple[int, bool]], width: int) -> None:
    async def work() -> None:
        gate = Gate(width, 100, 60.0)
        most = 0

        async def one(turns: int) -> None:
            nonlocal most
            entered = await gate.enter()
            try:
                most = max(most, gate.running)
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                gate.leave(entered)

        tasks = []
        for turns, cancel in steps:
            tasks.append(asyncio.create_task(one(turns)))
            await asyncio.sleep(0)
            if cancel:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= width
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(work())
