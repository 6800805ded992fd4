"""Operations counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill.distill import flops
from potstill.distill.batches import MicroBatch, Row, RowSet
from potstill.distill.flops import Cost, batch_size, machine_flops, step_flops
from potstill.distill.objective import ActiveTokens

# A beginning of 6 tokens with ends of 4 and 2, and a row of 5 on its own; the last two are answer.
BEGINNING = (3, 4, 5, 6, 7, 8)
ROWS = [
    Row("one", (*BEGINNING, 9, 10, 11, 12), 8),
    Row("two", (*BEGINNING, 13, 14), 6),
    Row("alone", (20, 21, 22, 23, 24), 3),
]
APART = [(0,), (1,), (2,)]
TOGETHER = [(0, 1), (2,)]
ACTIVE = ActiveTokens("all", "answer")


def batch_of(
    families: list[tuple[int, ...]], packed: bool, active: ActiveTokens = ACTIVE
) -> MicroBatch:
    return RowSet(ROWS, families, packed).collate(families, active, padding=0)


def test_the_cost_of_a_tiny_llama_is_that_counted_by_hand(teacher: Any) -> None:
    config = teacher.config
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (32, 64, 8)
    heads, groups, words = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )
    # q and o: hidden x heads * 8; k and v: hidden x groups * 8; gate, up, down: hidden x 64.
    one_layer = 2 * 32 * 8 * heads + 2 * 32 * 8 * groups + 3 * 32 * 64
    cost = Cost.of(teacher)
    assert cost.a_token == 2 * 4 * one_layer
    assert cost.a_pair == 4 * 4 * 8 * heads  # layers x (scores and values) x 2 x width
    assert cost.a_prediction == 2 * 32 * words


def test_golden_numbers(teacher: Any) -> None:
    config = teacher.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    cost = Cost.of(teacher)
    assert (cost.a_token, cost.a_pair) == (73_728.0, 512.0)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_apart_see_what_stands_before_them_in_each(packed: bool) -> None:
    # 10 + 8 + 5 tokens, padding none; 10 * 11 / 2 + 8 * 9 / 2 + 5 * 6 / 2 pairs.
    assert batch_size(batch_of(APART, packed)) == (23, 55 + 36 + 15)


@pytest.mark.parametrize("packed", [False, True])
def test_a_shared_beginning_is_computed_once_and_seen_by_every_end(packed: bool) -> None:
    # Beginning 6 tokens, 21 pairs; ends of 4 and 2: 4 * 6 + 10 and 2 * 6 + 3; alone 5 and 15.
    assert batch_size(batch_of(TOGETHER, packed)) == (6 + 4 + 2 + 5, 21 + 34 + 15 + 15)


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_those_of_the_mask(packed: bool) -> None:
    batch = batch_of(TOGETHER, packed)
    if packed:
        assert batch.segments is not None
        seen = sum(int(one.sight(None).sum()) for one in batch.segments)
    else:
        assert batch.attention_mask is not None
        padding = 12 - 5  # of the second line; padding sees itself alone
        seen = int(batch.attention_mask.sum()) - padding
    assert batch_size(batch)[1] == seen


COST = Cost(a_token=100.0, a_pair=10.0, a_prediction=1000.0)
TEACHER = Cost(a_token=300.0, a_pair=20.0, a_prediction=4000.0)
STATES = Cost(a_token=0.0, a_pair=0.0, a_prediction=4000.0)
"""Of a file of hidden states."""


def test_a_step_is_three_passes_of_the_student_and_one_of_the_teacher() -> None:
    batch = batch_of(APART, packed=True)
    predictions = 9 + 7 + 4  # all but the first of each row, all taught
    student = 23 * 100.0 + 106 * 10.0 + predictions * 1000.0
    assert COST.forward(batch, predictions) == student
    body, output = 23 * 300.0 + 106 * 20.0, predictions * 4000.0
    assert step_flops(batch, COST, None) == 3 * student
    assert step_flops(batch, COST, STATES) == 3 * student + output
    assert step_flops(batch, COST, TEACHER) == 3 * student + body + output


def test_only_logits_that_a_term_asks_for_are_counted() -> None:
    # In the answers: 2 of the first row, 2 of the second, 2 of the last.
    answers = batch_of(APART, True, ActiveTokens("answer", None))
    body = 3 * (23 * 100.0 + 106 * 10.0)
    teacher = 23 * 300.0 + 106 * 20.0
    expected = body + 3 * 6 * 1000.0 + teacher + 6 * 4000.0
    assert step_flops(answers, COST, TEACHER) == expected
    # Cross-entropy alone: the student's logits, none of the teacher's.
    surprise = batch_of(APART, True, ActiveTokens(None, "answer"))
    assert step_flops(surprise, COST, STATES) == body + 3 * 6 * 1000.0


def test_a_shared_prediction_is_multiplied_once() -> None:
    # Of the beginning 5 predictions, then the ends' 4 and 2, and 4 of the row alone.
    batch = batch_of(TOGETHER, packed=True)
    student = 17 * 100.0 + 85 * 10.0 + 15 * 1000.0
    assert step_flops(batch, COST, None) == 3 * student


def test_the_machine_is_measured_once_and_by_a_product_of_the_said_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine_flops.cache_clear()
    monkeypatch.setattr(flops, "SIDE", 64)
    now = iter([0.0, 2.0, 10.0, 10.5, 20.0, 21.0])  # the second of three is the fastest
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(now))
    try:
        rate = machine_flops(torch.float32, torch.device("cpu"), 1)
        assert rate == 2 * 64**3 / 0.5
        assert machine_flops(torch.float32, torch.device("cpu"), 1) == rate  # no time is left
    finally:
        machine_flops.cache_clear()
