"""An endpoint's keys lent to several workers by one actor: limits hold over all of them.

The actor is called as an object here; over Ray it is in `tests/integration/test_on_ray.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from potstill.errors import ModelError, UnavailableError
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.keys import KeyPool, Lease, open_pool
from potstill.scale import keys as module
from potstill.scale.keys import KeyDesk, SharedPool, open_shared_pool, variables_here

URL = "http://127.0.0.1:9/v1"
SECRETS = {"FIRST": "sk-first-0123456789", "SECOND": "sk-second-0123456789"}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """clock(seconds): so much time passes, for the actor and the workers alike."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def endpoint(**fields: Any) -> EndpointConfig:
    return EndpointConfig.model_validate({"base_url": URL, "keys": ["FIRST", "SECOND"]} | fields)


class Workers:
    """Pools of several workers at one desk, and what users are told."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config, self.said = config, list[str]()
        self.variables = variables_here(config)
        self.desk = KeyDesk(config.model_dump(mode="json"), self.variables)

    def open(self, worker: int) -> SharedPool:
        return open_shared_pool(self.config, self.variables, worker, self.said.append, self)

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self.desk, method)(*arguments)

    def say(self, method: str, *arguments: Any) -> None:
        self.ask(method, *arguments)


def leases(*pools: SharedPool, tokens: float = 10) -> list[Lease]:
    """All that may be sent now, each pool in turn."""
    found: list[Lease] = []
    waiting = set[int]()
    while len(waiting) < len(pools):
        for number, pool in enumerate(pools):
            lease = pool.lease(tokens, module.time.monotonic())
            if isinstance(lease, Lease):
                found.append(lease)
            else:
                assert lease is not None  # another worker's reply must not be waited for in vain
                waiting.add(number)
    return found


def test_so_many_at_once_over_all_workers() -> None:
    workers = Workers(endpoint(concurrency=3))
    one, other = workers.open(0), workers.open(1)
    given = leases(one, other)
    assert len(given) == 6
    assert {lease.key.variable for lease in given} == set(SECRETS)
    assert all(lease.key.secret == SECRETS[lease.key.variable] for lease in given)
    one.give_back(given[0], 5)
    assert len(leases(other)) == 1


def test_requests_a_minute_over_all_workers(clock: Callable[[float], None]) -> None:
    config = endpoint(keys=["FIRST"], requests_per_minute=30, concurrency=100)
    workers = Workers(config)
    alone = open_pool(config, 1000.0, lambda: 0.5, workers.said.append)

    def sent(*pools: KeyPool) -> int:
        count = 0
        for _ in range(240):
            for pool in pools:
                while isinstance(lease := pool.lease(10, module.time.monotonic()), Lease):
                    pool.give_back(lease, 10)
                    count += 1
            clock(0.25)
        return count

    expected = sent(alone)
    assert 25 < expected <= 30
    assert sent(workers.open(0), workers.open(1)) == expected


def test_a_dead_worker_gives_back_what_it_had(clock: Callable[[float], None]) -> None:
    workers = Workers(endpoint(keys=["FIRST"], concurrency=2, timeout_seconds=60))
    dead, other = workers.open(0), workers.open(1)
    leases(dead)
    assert not leases(other)
    workers.open(0)  # it begins again
    assert len(leases(other)) == 2
    assert not leases(workers.open(2))
    clock(74)  # the other never begins again, but no request takes so long
    assert len(leases(workers.open(2))) == 2


def test_a_key_that_is_refused_is_out_for_all() -> None:
    workers = Workers(endpoint(concurrency=1))
    one, other = workers.open(0), workers.open(1)
    lease = next(lease for lease in leases(one) if lease.key.variable == "FIRST")
    one.take_out(lease, "it is revoked")
    other.lease(1, 1000.0)
    assert [key.variable for key in other.live] == ["SECOND"]
    assert [text for text in workers.said if "FIRST" in text and "revoked" in text]
    assert not any(secret in text for text in workers.said for secret in SECRETS.values())


def test_a_pause_holds_for_all(clock: Callable[[float], None]) -> None:
    workers = Workers(endpoint(keys=["FIRST"], concurrency=8))
    one, other = workers.open(0), workers.open(1)
    lease = one.lease(1, 1000.0)
    assert isinstance(lease, Lease)
    assert one.too_fast(lease, 1000.0, 20.0) == pytest.approx(20.0)
    assert other.lease(1, 1000.0) == pytest.approx(20.0)
    clock(20.1)
    assert isinstance(other.lease(1, 1020.1), Lease)
    assert other.width == 4  # half of the eight, after one refusal


def test_no_key_is_told_to_the_desk() -> None:
    desk = Workers(endpoint()).desk
    seen = [key.secret for key in desk._pool.keys] + [str(desk.lease(0, 1.0)), str(desk.state())]
    assert not any(secret in text for text in seen for secret in SECRETS.values())


def test_an_endpoint_that_needs_no_key() -> None:
    workers = Workers(endpoint(keys=[], concurrency=2))
    assert workers.variables == []
    assert len(leases(workers.open(0), workers.open(1))) == 2


def test_a_worker_without_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(endpoint())
    monkeypatch.delenv("SECOND")
    with pytest.raises(UnavailableError, match="SECOND is not set there"):
        workers.open(0)
    monkeypatch.setenv("SECOND", SECRETS["FIRST"])
    with pytest.raises(ModelError, match="other keys"):
        workers.open(0)


def test_a_key_that_comes_back_goes_with_the_next_request_without_asking(
    clock: Callable[[float], None],
) -> None:
    workers = Workers(endpoint(keys=["FIRST"], concurrency=1))
    one, other = workers.open(0), workers.open(1)
    asked: list[str] = []
    real = workers.ask
    workers.ask = lambda method, *more: (asked.append(method), real(method, *more))[1]  # type: ignore[method-assign]

    async def work() -> None:
        for _ in range(20):
            (lease,) = leases(one)
            assert isinstance(other.lease(1, module.time.monotonic()), float)
            one.went_well(lease)  # nothing is to be mended: nobody is told
            one.give_back(lease, 5)
        clock(module.LENT_SECONDS)
        (lease,) = leases(one)  # it went back first, and was lent anew
        one.give_back(lease, 5)
        clock(2 * module.HELD_SECONDS)
        await asyncio.sleep(0)  # no further request came
        await asyncio.sleep(0)
        assert len(leases(other)) == 1

    asyncio.run(work())
    assert asked.count("give_back") == 2
    assert "tell" not in asked


def test_a_key_with_limits_a_minute_is_settled_at_once() -> None:
    workers = Workers(endpoint(keys=["FIRST"], concurrency=1, tokens_per_minute=1000))
    one, other = workers.open(0), workers.open(1)

    async def work() -> None:
        (lease,) = leases(one, tokens=30)
        one.give_back(lease, 1)
        assert len(leases(other, tokens=30)) == 1

    asyncio.run(work())


def test_after_a_refusal_what_goes_well_is_told(clock: Callable[[float], None]) -> None:
    workers = Workers(endpoint(keys=["FIRST"], concurrency=8))
    one = workers.open(0)
    first, second, *_ = leases(one)
    one.too_fast(first, module.time.monotonic(), 1.0)
    (key,) = workers.desk._pool.keys
    assert key.refusals == 1
    one.went_well(second)
    assert key.refusals == 0
