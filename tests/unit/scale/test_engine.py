"""What a worker has to do grows while it answers, and is read once."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from potstill.inference.base import Request
from potstill.records import Turn
from potstill.scale.engine import Numbered, Stock, fields_of


def numbered(numbers: range) -> list[Numbered]:
    turns = (Turn(role="user", content="Write."),)
    return [(one, fields_of(Request(turns, 4, 0.0, 1.0, one))) for one in numbers]


@given(batches=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_what_is_added_before_the_end_is_read_in_its_order(batches: list[int]) -> None:
    starts = [sum(batches[:place]) for place in range(len(batches))]
    made = [
        numbered(range(start, start + size)) for start, size in zip(starts, batches, strict=True)
    ]
    stock = Stock(made[0])
    assert all(stock.add(one) for one in made[1:])
    assert [request.seed for request in stock] == list(range(sum(batches)))
    assert stock.begun == list(range(sum(batches)))
    assert not stock.add(numbered(range(1)))  # who asks has been told that there is no more
    assert next(stock, None) is None


def test_what_is_closed_is_read_no_further() -> None:
    stock = Stock(numbered(range(3)))
    assert next(stock).seed == 0
    stock.close()
    assert next(stock, None) is None
    assert not stock.add(numbered(range(1)))
    assert stock.begun == [0]


def test_nothing_that_was_taken_is_lost_between_two_threads() -> None:
    stock = Stock(numbered(range(1)))
    taken: list[int] = [1]
    read: list[Any] = []

    def add() -> None:
        for one in range(1, 400):
            if stock.add(numbered(range(one, one + 1))):
                taken.append(1)

    adder = threading.Thread(target=add)
    adder.start()
    for _ in range(2000):
        if (found := next(stock, None)) is not None:
            read.append(found)
    adder.join()
    read.extend(stock)
    assert len(read) == len(taken)
