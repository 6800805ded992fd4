"""A teacher that is many, with workers that answer at once, die, or fail, in place of Ray's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import PotstillError, TeacherError
from potstill.inference.base import Request
from potstill.inference.fake import FakeModel
from potstill.records import Turn
from potstill.scale.cluster import Cluster, Ledger
from potstill.scale.engine import fields_of, request_of
from potstill.scale.place import Place
from potstill.scale.teacher import LARGEST_BATCH, LOSSES, RayModel

Behaviour = Callable[[int, list[Any]], Any]


class ActorDiedError(Exception):
    """As Ray's."""


class Ray:
    """What `RayModel` uses of Ray. behave(n, batch): what the n-th batch comes to: how many of its
    replies reach the ledger before its worker dies, "error" for one that fails, None: all."""

    exceptions = SimpleNamespace(RayActorError=ActorDiedError)

    def __init__(self, behave: Behaviour = lambda n, batch: None) -> None:
        self.behave, self.ledger = behave, Ledger()
        self.batches: list[list[int]] = []
        self.killed = 0

    def remote(self, kind: type) -> Any:
        engine = SimpleNamespace(answer=SimpleNamespace(remote=self.answer))
        made = SimpleNamespace(remote=lambda *arguments: engine)
        return SimpleNamespace(options=lambda **more: made)

    def answer(self, batch: list[Any]) -> Any:
        number = len(self.batches)
        self.batches.append([one for one, _ in batch])
        met = self.behave(number, batch)
        if met == "error":
            return object.__new__(_Call).of(
                {"error": "TeacherError", "message": "It is gone.", "hint": ""}
            )
        requests = [request_of(fields) for _, fields in batch[:met]]
        for place, reply in FakeModel().complete(requests):
            self.ledger.put(batch[place][0], asdict(reply))
        return object.__new__(_Call).of(None if met is None else ActorDiedError("killed"))

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[-1:], calls[:-1]  # the last one first

    def get(self, call: Any) -> Any:
        if isinstance(call, _Call):
            if isinstance(call.result, Exception):
                raise call.result
            return call.result
        return call

    def kill(self, actor: Any) -> None:
        self.killed += 1


class _Call:
    """A call that has ended, with its result or its error."""

    result: Any

    def of(self, result: Any) -> _Call:
        self.result = result
        return self


def model(ray: Ray, workers: int = 2, parallel: int = 2, said: list[str] | None = None) -> RayModel:
    ledger = SimpleNamespace(take=SimpleNamespace(remote=ray.ledger.take))
    cluster = Cluster(ray, Place("ray"), workers, ledger)
    warn = said.append if said is not None else lambda text: None
    return RayModel(cluster, {}, None, parallel, warn)


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        turns = (Turn(role="user", content=f"Write about unit {number}, please."),)
        yield Request(turns, 40, 0.5, 0.9, number, {"type": "string"}, ("\n",))


def expected(count: int) -> dict[int, str]:
    return {place: reply.text for place, reply in FakeModel().complete(requests(count))}


def answered(teacher: RayModel, count: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for position, reply in teacher.complete(requests(count)):
        assert position not in found
        found[position] = reply.text
    return found


def test_a_request_crosses_to_a_worker_whole() -> None:
    for request in requests(2):
        assert request_of(fields_of(request)) == request


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(0, 90),
    workers=st.integers(1, 5),
    parallel=st.integers(1, 8),
    deaths=st.lists(st.integers(0, 3) | st.none(), max_size=4),
)
def test_every_reply_comes_once_whatever_dies(
    count: int, workers: int, parallel: int, deaths: list[int | None]
) -> None:
    ray = Ray(lambda n, batch: deaths[n] if n < len(deaths) else None)
    assert answered(model(ray, workers, parallel), count) == expected(count)


def test_only_what_a_dead_worker_had_not_answered_is_asked_again() -> None:
    said: list[str] = []
    ray = Ray(lambda n, batch: 3 if n == 1 else None)
    teacher = model(ray, said=said)
    assert answered(teacher, 30) == expected(30)
    asked = [number for batch in ray.batches for number in batch]
    again = {number for number in asked if asked.count(number) > 1}
    assert again == set(ray.batches[1][3:])
    assert said == [f"A worker was lost; {len(again)} requests that it had are asked again."]


def test_a_few_requests_are_dealt_among_all_workers() -> None:
    ray = Ray()
    answered(model(ray, workers=4, parallel=8), 8)
    assert [len(batch) for batch in ray.batches[:4]] == [2, 2, 2, 2]
    many = Ray()
    answered(model(many, workers=2, parallel=2), 200)
    sizes = [len(batch) for batch in many.batches]
    assert max(sizes) == 2 * LARGEST_BATCH
    assert sizes[-1] <= 2


def test_requests_are_read_no_further_ahead_than_workers_need() -> None:
    read: list[int] = []

    def noted() -> Iterator[Request]:
        for number, request in enumerate(requests(1000)):
            read.append(number)
            yield request

    ray = Ray()
    teacher = model(ray, workers=2, parallel=2)
    for _ in teacher.complete(noted()):
        assert len(read) <= sum(map(len, ray.batches)) + 2 * 2 * 2 * LARGEST_BATCH
        if len(ray.batches) > 3:
            break
    assert len(read) < 200


def test_what_a_worker_says_ends_the_run_and_gives_the_workers_back() -> None:
    ray = Ray(lambda n, batch: "error" if n == 1 else None)
    teacher = model(ray)
    with pytest.raises(TeacherError, match=r"It is gone\."):
        answered(teacher, 100)
    teacher.close()
    assert ray.killed == 2


def test_a_request_that_kills_each_worker_ends_the_run() -> None:
    ray = Ray(lambda n, batch: next((i for i, one in enumerate(batch) if one[0] == 7), None))
    with pytest.raises(PotstillError, match="do not stay: killed"):
        answered(model(ray), 20)
    assert sum(7 in batch for batch in ray.batches) == LOSSES


def test_a_late_reply_is_nobody_elses() -> None:
    ray = Ray()
    teacher = model(ray)
    assert answered(teacher, 5) == expected(5)
    ray.ledger.put(1, {"text": "again"})  # refused: that number is done
    ray.ledger.put(4711, {"text": "late"})
    assert answered(teacher, 5) == expected(5)
    assert max(number for batch in ray.batches for number in batch) == 10


def test_ledger() -> None:
    ledger = Ledger()
    for number in (1, 2, 1):
        ledger.begin()
        ledger.put(number, f"value {number}")
    ledger.note("Mind the gap.")
    assert ledger.known([1, 2, 3]) == [1, 2]
    assert ledger.take() == ([(1, "value 1"), (2, "value 2")], ["Mind the gap."])
    assert ledger.take() == ([], [])
    assert ledger.known([1, 3]) == [1]
    assert ledger.repeated() == 1
