"""The request cache: asked once, remembered for good, whatever kills the process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.fake import FakeModel
from potstill.inference.replay import ReplayModel
from potstill.records import Turn


def request(text: str, **more: object) -> Request:
    return Request((Turn(role="user", content=text),), **more)  # type: ignore[arg-type]


class Counting(FakeModel):
    """A fake that notes what it is asked and whether it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Request] = []
        self.opened = 0
        self.closed = 0

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        for position, one in enumerate(requests):
            self.asked.append(one)
            for _, reply in super().complete([one]):
                yield position, reply

    @contextmanager
    def open(self) -> Iterator[TextModel]:
        self.opened += 1
        yield self
        self.closed += 1


def test_a_finished_request_is_not_sent_again_by_another_process(tmp_path: Path) -> None:
    model = Counting()
    first = ReplayModel(tmp_path, "m", model.open)
    replies = dict(first.complete([request("a b"), request("c d")]))
    first.close()
    again = ReplayModel(tmp_path, "m", model.open)
    assert dict(again.complete([request("a b"), request("c d")])) == replies
    again.close()
    assert [len(model.asked), model.opened, model.closed] == [2, 1, 1]
    assert (again.sent, again.replayed) == (0, 2)


def test_equal_requests_of_one_call_are_sent_once_and_answered_each(tmp_path: Path) -> None:
    model = Counting()
    replay = ReplayModel(tmp_path, "m", model.open)
    replies = dict(replay.complete([request("x y"), request("z"), request("x y")]))
    assert replies[0] == replies[2]
    assert len(model.asked) == 2
    replay.close()


@pytest.mark.parametrize(
    "other",
    [
        request("a c"),
        request("a b", seed=1),
        request("a b", max_tokens=5),
        request("a b", temperature=0.1),
        request("a b", top_p=0.5),
        request("a b", stop=("x",)),
        request("a b", schema={"type": "string"}),
        Request((Turn(role="system", content="a b"),)),
    ],
)
def test_every_part_of_a_request_counts(tmp_path: Path, other: Request) -> None:
    assert other.digest("m") != request("a b").digest("m")


def test_the_order_of_a_schemas_fields_and_the_model_count() -> None:
    one = request("a", schema={"properties": {"p": {}, "q": {}}})
    two = request("a", schema={"properties": {"q": {}, "p": {}}})
    assert one.digest("m") != two.digest("m")
    assert one.digest("m") != one.digest("n")


def test_a_torn_last_line_costs_that_reply_only_and_is_not_glued_to_the_next(
    tmp_path: Path,
) -> None:
    model = Counting()
    first = ReplayModel(tmp_path, "m", model.open)
    list(first.complete([request("a b"), request("c d")]))
    first.close()
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-9])
    second = ReplayModel(tmp_path, "m", model.open)
    list(second.complete([request("a b"), request("c d"), request("e f")]))
    second.close()
    assert (second.replayed, second.sent) == (1, 2)
    third = ReplayModel(tmp_path, "m", model.open)
    assert len(list(third.complete([request("a b"), request("c d"), request("e f")]))) == 3
    assert third.sent == 0
    third.close()


def test_a_reply_is_on_disk_before_anyone_sees_it(tmp_path: Path) -> None:
    replay = ReplayModel(tmp_path, "m", Counting().open)
    for count, _ in enumerate(replay.complete([request(str(n)) for n in range(4)]), 1):
        lines = replay.path.read_text("utf-8").splitlines()
        assert len(lines) == count
        assert all(json.loads(line)["finish_reason"] == "stop" for line in lines)
    replay.close()


def test_a_refusal_is_not_remembered(tmp_path: Path) -> None:
    class Refusing(Counting):
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            for position, one in enumerate(requests):
                self.asked.append(one)
                yield position, Reply("too long", "error", 0, 0, 0.0)

    model = Refusing()
    replay = ReplayModel(tmp_path, "m", model.open)
    for _ in range(2):
        ((_, reply),) = replay.complete([request("a")])
        assert reply.finish_reason == "error"
    assert len(model.asked) == 2
    replay.close()


def test_closing_twice_is_harmless_and_an_unused_model_is_never_opened(tmp_path: Path) -> None:
    model = Counting()
    replay = ReplayModel(tmp_path, "m", model.open)
    replay.close()
    replay.close()
    assert model.opened == 0


def test_what_another_process_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    here, there = Counting(), Counting()
    one, two = (ReplayModel(tmp_path, "m", model.open) for model in (here, there))
    asked = [request(str(n)) for n in range(6)]
    replies = one.complete(asked)
    next(replies)  # the first is answered here, and the others are still to be sent
    theirs = dict(two.complete(asked[:4]))
    mine = dict(replies)
    assert {n: mine[n] for n in (1, 2, 3)} == {n: theirs[n] for n in (1, 2, 3)}
    assert sorted([*mine, 0]) == list(range(6))
    assert (len(here.asked), len(there.asked)) == (3, 3)
    assert (one.sent, one.replayed, two.sent, two.replayed) == (3, 3, 3, 1)
    one.close()
    two.close()


def test_a_line_that_another_process_left_torn_costs_that_line_only(tmp_path: Path) -> None:
    one = ReplayModel(tmp_path, "m", Counting().open)
    list(one.complete([request("a")]))
    with one.path.open("ab") as file:
        file.write(b'{"key": "killed in the mid')
    list(one.complete([request("b")]))
    one.close()
    again = ReplayModel(tmp_path, "m", Counting().open)
    list(again.complete([request("a"), request("b")]))
    assert again.replayed == 2
    again.close()
