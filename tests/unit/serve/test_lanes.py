"""Shares are kept, a candidate that fails costs no request, and a promotion loses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import ModelError
from potstill.serve.engine import Engine
from potstill.serve.lanes import Canary, Lane, Lanes, follow
from potstill.serve.problems import ApiError, invalid, unavailable
from potstill.serve.versions import Serving, Versions


class Says:
    """An engine that answers with its own name, one word at a time."""

    local = True
    context_tokens: int | None = None

    def __init__(self, model: str, fails: ApiError | None = None, after: int = 0) -> None:
        self.model, self.fails, self.after = model, fails, after
        self.ready = False
        self.stops = 0
        self.gate: asyncio.Event | None = None
        self.starts_with: Exception | None = None

    @property
    def upstream(self) -> Any:
        return self

    async def start(self) -> None:
        if self.starts_with is not None:
            raise self.starts_with
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        self.stops += 1

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        assert body["model"] == self.model
        for number in range(3):
            if self.fails is not None and number == self.after:
                raise self.fails
            if not self.ready:
                raise unavailable("it was stopped")
            yield {"word": number, "of": self.model}
            if self.gate is not None:
                await self.gate.wait()


@dataclass
class Asked:
    assigned: str
    path: str = "/v1/chat/completions"
    body: dict[str, Any] = field(default_factory=dict)
    variant: str = ""


def lanes(candidate: Says | None = None, **more: Any) -> tuple[Lanes, Says, list[str]]:
    told: list[str] = []
    current = Says("old")
    canary = Canary(Lane("new", engine(candidate)), 0.5) if candidate else None

    def tell(event: str, **fields: Any) -> None:
        told.append(event)

    return Lanes(Lane("old", engine(current)), canary, tell=tell, **more), current, told


def engine(one: Says) -> Engine:
    return one  # type: ignore[return-value]


async def read(one: Lanes, asked: Asked) -> list[str]:
    return [event["of"] async for event in one.events(asked)]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.02, 0.98), st.integers(0, 2**31))
def test_the_share_of_units_is_the_candidate_s(share: float, seed: int) -> None:
    canary = Canary(Lane("new", engine(Says("new"))), share, seed=seed)
    count = sum(canary.takes(f"key-{number}") for number in range(2000))
    assert abs(count / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_a_unit_stays_with_its_version() -> None:
    canary = Canary(Lane("new", engine(Says("new"))), 0.5, seed=3)
    assert canary.unit("alice", "hello", "r1") == canary.unit("alice", "goodbye", "r2") == "alice"
    first = canary.unit("", "When is the valve opened?", "r1")
    assert first == canary.unit("", "When is the valve opened?", "r2") != ""
    assert first != canary.unit("", "Who opens it?", "r3")
    by_request = Canary(canary.lane, 0.5, "request", seed=3)
    assert by_request.unit("alice", "hello", "r1") == "r1"
    same = Canary(canary.lane, 0.5, seed=3)  # after a restart
    assert all(canary.takes(f"k{n}") == same.takes(f"k{n}") for n in range(200))
    other = Canary(canary.lane, 0.5, seed=4)
    assert any(canary.takes(f"k{n}") != other.takes(f"k{n}") for n in range(200))


def test_a_request_goes_where_it_is_assigned() -> None:
    async def go() -> None:
        one, _, _ = lanes(Says("new"))
        await one.start()
        assert one.candidate_ready
        for name in ("new", "old"):
            asked = Asked(name)
            assert await read(one, asked) == [name] * 3
            assert asked.variant == name
        await one.stop()

    asyncio.run(go())


@pytest.mark.parametrize(
    "reason", [unavailable("it broke"), unavailable("starts", "engine_starting")]
)
def test_what_a_candidate_has_not_begun_is_answered_by_the_one_that_serves(
    reason: ApiError,
) -> None:
    async def go() -> None:
        bad = Says("new", fails=reason)
        one, _, told = lanes(bad)
        await one.start()
        asked = Asked("new")
        assert await read(one, asked) == ["old"] * 3
        assert asked.variant == "old"
        assert told == ["candidate_out"]
        assert {one.assign(f"k{n}") for n in range(50)} == {"old"}
        assert await read(one, Asked("new")) == ["old"] * 3  # it waited in the queue meanwhile
        await asyncio.sleep(0.1)
        assert bad.stops == 1
        await one.stop()

    asyncio.run(go())


def test_what_a_candidate_has_begun_fails_and_a_mistake_is_no_failure() -> None:
    async def go() -> None:
        one, _, told = lanes(Says("new", fails=unavailable("it broke"), after=1))
        await one.start()
        with pytest.raises(ApiError, match="it broke"):
            await read(one, Asked("new"))
        assert told == ["candidate_out"]
        await one.stop()
        one, _, told = lanes(Says("new", fails=invalid("too long")))
        await one.start()
        with pytest.raises(ApiError, match="too long"):
            await read(one, Asked("new"))
        assert told == []
        assert one.candidate_ready
        await one.stop()

    asyncio.run(go())


def test_a_promotion_is_taken_while_requests_run(tmp_path: Path) -> None:
    async def go() -> None:
        switched: list[str] = []
        one, old, told = lanes(switched=lambda lane: switched.append(lane.version))
        versions = Versions(tmp_path, "old")
        await one.start()
        opened: list[str] = []

        def open_version(serving: Serving) -> Engine:
            opened.append(serving.version)
            made = Says(serving.version)
            if serving.version == "broken":
                made.starts_with = ModelError("cannot be loaded")
            return engine(made)

        def tell(event: str, **fields: Any) -> None:
            told.append(event)

        watching = asyncio.create_task(follow(one, versions, open_version, tell, 0.02))
        old.gate = asyncio.Event()
        running = asyncio.create_task(read(one, Asked("old")))
        await asyncio.sleep(0.1)
        versions.promote("next", "", "k", force=True)
        async with asyncio.timeout(5):
            while one.current.version != "next":
                await asyncio.sleep(0.02)
        assert await read(one, Asked("old")) == ["next"] * 3  # it was assigned before the switch
        assert old.stops == 0  # it still writes
        old.gate.set()
        assert await running == ["old"] * 3
        async with asyncio.timeout(5):
            while not old.stops:
                await asyncio.sleep(0.02)
        versions.promote("broken", "", "k", force=True)
        async with asyncio.timeout(5):
            while "version_not_taken" not in told:
                await asyncio.sleep(0.02)
        assert await read(one, Asked("next")) == ["next"] * 3
        versions.path.write_text("{")
        async with asyncio.timeout(5):
            while told.count("version_not_taken") < 2:
                await asyncio.sleep(0.02)
        assert (switched, opened) == (["next"], ["next", "broken"])
        watching.cancel()
        await one.stop()

    asyncio.run(go())


def test_a_promoted_candidate_serves_with_the_engine_that_it_has() -> None:
    async def go() -> None:
        candidate = Says("new")
        one, old, _ = lanes(candidate)
        await one.start()

        def never(serving: Serving) -> Engine:
            raise AssertionError

        await one.take(Serving("new"), never)
        assert (one.current.version, one.canary) == ("new", None)
        assert await read(one, Asked("new")) == ["new"] * 3
        await asyncio.sleep(0.1)
        assert (old.stops, candidate.stops) == (1, 0)
        await one.stop()
        assert candidate.stops == 1

        candidate = Says("new")
        one, _, _ = lanes(candidate)
        await one.start()
        await one.take(Serving("new", "other.gguf"), lambda serving: engine(Says("other")))
        assert (one.current.version, one.current.file, one.canary) == ("new", "other.gguf", None)
        assert await read(one, Asked("new")) == ["other"] * 3
        await asyncio.sleep(0.1)
        assert candidate.stops == 1
        await one.stop()

    asyncio.run(go())
