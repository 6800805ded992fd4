"""The budget: never passed, resumed where it was, and nothing paid twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_endpoint import MockEndpoint

from potstill.errors import BudgetError
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.budget import BudgetConfig, Meter, MeteredModel
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.fake import FakeModel
from potstill.inference.openai import EndpointModel
from potstill.inference.replay import ReplayModel
from potstill.records import Turn

PRICED = EndpointConfig(
    base_url="http://127.0.0.1:1/v1", price_per_million_input=1e4, price_per_million_output=5e4
)


def requests(count: int) -> list[Request]:
    return [
        Request((Turn(role="user", content=f"Bell number {n} rings at noon."),), max_tokens=20)
        for n in range(count)
    ]


class ReadsAhead(FakeModel):
    """Takes several requests before it answers any, as engines do."""

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        source = iter(enumerate(requests))
        while block := list(islice(source, 7)):
            for position, one in reversed(block):
                for _, reply in super().complete([one]):
                    yield position, reply


def spend(meter: Meter, count: int, model: TextModel | None = None) -> dict[int, Reply]:
    return dict(MeteredModel(model or ReadsAhead(), meter).complete(requests(count)))


def test_without_a_budget_all_is_answered_and_counted() -> None:
    meter = Meter(None, PRICED)
    replies = spend(meter, 30)
    assert len(replies) == 30
    assert meter.spent.requests == 30
    assert meter.spent.tokens == sum(
        r.prompt_tokens + r.completion_tokens for r in replies.values()
    )
    assert meter.spent.money == pytest.approx(
        sum(r.prompt_tokens * 0.01 + r.completion_tokens * 0.05 for r in replies.values())
    )


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["money", "tokens", "requests"]), st.integers(1, 60), st.booleans())
def test_no_cap_is_ever_passed(name: str, cap: int, ahead: bool) -> None:
    meter = Meter(BudgetConfig(**{name: cap}), PRICED)
    got: list[int] = []
    replies = MeteredModel(ReadsAhead() if ahead else FakeModel(), meter).complete(requests(200))
    with pytest.raises(BudgetError, match=f"budget of {cap}"):
        got.extend(position for position, _ in replies)
    assert getattr(meter.spent, name) <= cap
    assert sorted(got) == list(range(len(got)))


def test_a_cap_is_used_nearly_to_its_end() -> None:
    meter = Meter(BudgetConfig(requests=50))
    with pytest.raises(BudgetError):
        spend(meter, 51)
    assert meter.spent.requests == 50
    meter = Meter(BudgetConfig(tokens=1000))
    with pytest.raises(BudgetError):
        spend(meter, 100)
    assert meter.spent.tokens > 950


def test_what_was_spent_outlives_the_process(tmp_path: Path) -> None:
    ledger = tmp_path / "spent.json"
    with pytest.raises(BudgetError, match="paid twice"):
        spend(Meter(BudgetConfig(requests=5), PRICED, ledger), 9)
    again = Meter(BudgetConfig(requests=5), PRICED, ledger)
    assert again.spent.requests == 5
    with pytest.raises(BudgetError, match="So far 5 requests"):
        spend(again, 9)
    more = Meter(BudgetConfig(requests=9), PRICED, ledger)
    assert len(spend(more, 4)) == 4
    ledger.write_text("{")
    assert Meter(None, None, ledger).spent.requests == 0


def test_a_raised_cap_goes_on_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    def run(server: MockEndpoint, cap: int) -> dict[int, Reply]:
        endpoint = EndpointConfig(base_url=server.url)
        meter = Meter(BudgetConfig(requests=cap), endpoint, tmp_path / "spent.json")

        @contextmanager
        def opener() -> Iterator[TextModel]:
            model = EndpointModel(endpoint, "m")
            yield model
            model.close()

        replay = ReplayModel(tmp_path / "cache", "m", meter.metered(opener))
        try:
            return dict(replay.complete(requests(40)))
        finally:
            replay.close()

    with MockEndpoint() as server:
        for cap in (10, 25):
            with pytest.raises(BudgetError):
                run(server, cap)
            assert server.count == cap
        assert len(run(server, 40)) == 40
    assert (server.count, server.repeated) == (40, 0)


def test_figures_say_how_fast_how_dear_and_how_long() -> None:
    meter = Meter(None, PRICED)
    assert meter.figures(0, 0, 10) == {}
    spend(meter, 5)
    figures = meter.figures(rows=3, done=5, total=10)
    assert figures["cost"] == pytest.approx(meter.spent.money, rel=1e-3)
    assert figures["tokens_per_second"] > 0
    assert figures["rows_per_second"] > 0


def test_how_long_is_said_once_there_is_something_to_reckon_from() -> None:
    """The first reply comes when all that began with it are nearly done."""
    meter = Meter(None, PRICED)
    meter.figures(0, 0, 60)
    for replies in range(1, 30):
        spend(meter, 1)
        figures = meter.figures(rows=replies, done=replies, total=60)
        assert ("seconds_left" in figures) == (replies >= 10)
    assert meter.figures(rows=3, done=60, total=60)["seconds_left"] == 0
    few = Meter(None, PRICED)
    few.figures(0, 0, 2)
    spend(few, 2)
    assert few.figures(rows=2, done=2, total=2)["seconds_left"] == 0


def test_replayed_requests_cost_nothing(tmp_path: Path) -> None:
    @contextmanager
    def opener() -> Iterator[TextModel]:
        yield FakeModel()

    for expected in (6, 0):
        meter = Meter(BudgetConfig(requests=6), PRICED)
        replay = ReplayModel(tmp_path, "m", meter.metered(opener))
        assert len(list(replay.complete(requests(6)))) == 6
        replay.close()
        assert meter.spent.requests == expected
        assert (meter.spent.money > 0) == (expected > 0)


def test_what_is_abandoned_is_set_aside_no_more() -> None:
    meter = Meter(BudgetConfig(requests=12))
    replies = MeteredModel(ReadsAhead(), meter).complete(requests(50))
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert len(spend(meter, 11)) == 11


def test_engines_in_threads_and_the_meter_agree() -> None:
    class Threaded(FakeModel):
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            taken: list[Any] = []
            thread = threading.Thread(target=lambda: taken.extend(enumerate(requests)))
            thread.start()
            thread.join()
            for position, one in taken:
                for _, reply in super().complete([one]):
                    yield position, reply

    meter = Meter(BudgetConfig(tokens=3000))
    with pytest.raises(BudgetError):
        spend(meter, 500, Threaded())
    assert 2900 < meter.spent.tokens <= 3000
