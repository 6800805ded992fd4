"""Rows, masks, the shift and the plan of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from potstill.distill.batches import (
    Row,
    RowSet,
    collate,
    encode_passages,
    encode_rows,
)
from potstill.distill.families import Family
from potstill.distill.objective import ActiveTokens
from potstill.distill.packing import best_fit, fill_buckets, plan_steps
from potstill.errors import TrainingError
from potstill.records import Chunk, Example

ROWS = [Row("a", (5, 6, 7, 8, 2), 3), Row("b", (9, 4, 2), 1)]


def test_position_t_predicts_the_token_after_it() -> None:
    batch = collate(ROWS, [(0,), (1,)], ActiveTokens("all", "answer"), padding=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]]
    flat = batch.input_ids.flatten()
    assert batch.positions.tolist() == [0, 1, 2, 3, 5, 6]
    assert batch.targets.tolist() == flat[batch.positions + 1].tolist() == [6, 7, 8, 2, 4, 2]
    # The answers are (8, 2) and (4, 2), their end tokens included.
    assert batch.ce_counts.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.kd_counts.tolist() == [1] * 6


def test_predictions_that_no_term_counts_are_left_out() -> None:
    batch = collate(ROWS, [(0,)], ActiveTokens(None, "answer"), padding=0)
    assert batch.positions.tolist() == [2, 3]
    assert not batch.kd_counts.any()


def test_padding_with_the_end_token_does_not_mask_the_end_token() -> None:
    batch = collate(ROWS, [(0,), (1,)], ActiveTokens("answer", "answer"), padding=2)
    assert batch.targets.tolist() == [8, 2, 4, 2]


def test_rows_end_in_the_end_token_and_long_ones_are_marked(
    tokenizer: Any, examples: list[Example]
) -> None:
    whole = encode_rows(examples, tokenizer, 500)
    assert all(row.ids[-1] == tokenizer.eos_token_id and not row.truncated for row in whole)
    answer = tokenizer.decode(whole[0].ids[whole[0].answer_start :])
    assert answer == f"{examples[0].answers[0]}<|im_end|>"
    cut = encode_rows(examples, tokenizer, 20)
    assert all(len(row.ids) == 20 and row.truncated for row in cut)


def test_passages_have_no_answer(tokenizer: Any) -> None:
    chunk = Chunk(id="c", document="d", source="s", start=0, end=9, tokens=3, text="The boiler")
    (row,) = encode_passages([chunk], tokenizer, 500)
    assert row.bare
    assert row.answer_start == len(row.ids)
    assert not collate([row], [(0,)], ActiveTokens("all", "answer"), 0).ce_counts.any()


LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=80)


def rows_of(lengths: Sequence[int]) -> list[Row]:
    """Rows that share nothing."""
    return [Row(str(n), (n, *range(1, length)), 1) for n, length in enumerate(lengths)]


def plan_of(lengths: Sequence[int], **settings: Any) -> list[list[list[int]]]:
    """The plan of rows that share nothing, as row numbers."""
    plan = plan_steps(RowSet.apart(rows_of(lengths)), **settings)
    return [[[row for (row,) in micro] for micro in step] for step in plan]


@settings(max_examples=50, deadline=None)
@example([2] * 5 + [54] + [60] * 5, 243, 60, 0)
@given(LENGTHS, st.integers(20, 300), st.integers(60, 200), st.integers(0, 5))
def test_every_epoch_has_every_row_once_and_micro_batches_keep_their_budget(
    lengths: list[int], step_tokens: int, micro_tokens: int, seed: int
) -> None:
    plan = plan_of(
        lengths,
        step_tokens=step_tokens,
        micro_tokens=micro_tokens,
        epochs=2,
        max_tokens=None,
        seed=seed,
    )
    rows = [row for step in plan for micro in step for row in micro]
    half = len(lengths)
    assert sorted(rows[:half]) == sorted(rows[half:]) == list(range(half))
    for step in plan:
        # The last window may hold one and a half steps; and a row may stick out.
        assert sum(lengths[row] for micro in step for row in micro) <= 1.5 * step_tokens + 60
        for micro in step:
            assert len(micro) * max(lengths[row] for row in micro) <= max(micro_tokens, 60)


def test_the_plan_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    def plan(seed: int, **changes: Any) -> list[list[list[int]]]:
        settings: dict[str, Any] = {"step_tokens": 90, "micro_tokens": 90, "epochs": 3}
        settings |= {"max_tokens": None, "seed": seed} | changes
        return plan_of([*range(10, 60)], **settings)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    short = plan(1, max_tokens=400)
    assert short == plan(1)[: len(short)]
    assert len(short) < len(plan(1))


def test_lengths_within_a_step_are_alike() -> None:
    lengths = [10 + (7 * number) % 90 for number in range(400)]
    plan = plan_of(lengths, step_tokens=500, micro_tokens=1000, epochs=1, max_tokens=None, seed=0)
    padded = sum(len(micro) * max(lengths[row] for row in micro) for step in plan for micro in step)
    assert padded / sum(lengths) < 1.08


def test_splitting_a_step_keeps_its_families() -> None:
    sizes: dict[Family, int] = {(0, 3): 5, (1,): 9, (2,): 7}
    assert fill_buckets([(2,), (0, 3), (1,)], sizes, 14) == [[(0, 3), (2,)], [(1,)]]


def test_packed_rows_stand_one_after_the_other_with_their_own_positions() -> None:
    batch = collate(ROWS, [(0,), (1,)], ActiveTokens("all", "answer"), padding=0, packed=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2, 9, 4, 2]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.segments is not None
    assert [(one.start, one.length) for one in batch.segments] == [(0, 5), (5, 3)]
    assert batch.starts == (0, 5)
    assert batch.targets.tolist() == [6, 7, 8, 2, 4, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 5, 6]


def test_best_fit_takes_the_fullest_that_still_has_room() -> None:
    sizes: dict[Family, int] = {(0,): 7, (1,): 5, (2,): 4, (3,): 3, (4,): 1, (5,): 20}
    assert best_fit(list(sizes), sizes, 10) == [[(5,)], [(0,), (3,)], [(1,), (2,), (4,)]]


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(60, 200))
def test_best_fit_loses_no_family_and_wastes_little(lengths: list[int], room: int) -> None:
    sizes: dict[Family, int] = {(n,): length for n, length in enumerate(lengths)}
    packs = best_fit(list(sizes), sizes, room)
    assert sorted(family for micro in packs for family in micro) == list(sizes)
    held = [sum(sizes[family] for family in micro) for micro in packs]
    assert max(held) <= room
    # No two could have been one.
    assert all(a + b > room for n, a in enumerate(held) for b in held[n + 1 :])


def fewest(lengths: list[int], room: int) -> int:
    """The fewest packs, by trying everything."""

    def put(left: list[int], packs: list[int], best: int) -> int:
        if len(packs) >= best:
            return best
        if not left:
            return len(packs)
        for place in range(len(packs)):
            if packs[place] + left[0] <= room:
                more = [*packs[:place], packs[place] + left[0], *packs[place + 1 :]]
                best = put(left[1:], more, best)
        return put(left[1:], [*packs, left[0]], best)

    return put(sorted(lengths, reverse=True), [], len(lengths) + 1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(60, 100))
def test_best_fit_needs_at_most_one_pack_more_than_the_fewest(
    lengths: list[int], room: int
) -> None:
    sizes: dict[Family, int] = {(n,): length for n, length in enumerate(lengths)}
    assert len(best_fit(list(sizes), sizes, room)) <= fewest(lengths, room) + 1


def test_a_packed_plan_is_an_even_shuffle_without_padding() -> None:
    lengths = [10 + (7 * number) % 90 for number in range(400)]
    data = RowSet.apart(rows_of(lengths), packed=True)
    plan = plan_steps(data, step_tokens=500, micro_tokens=300, epochs=1, max_tokens=None, seed=0)
    seen = [row for step in plan for micro in step for (row,) in micro]
    assert sorted(seen) == list(range(400))
    for step in plan:
        assert abs(sum(lengths[row] for micro in step for (row,) in micro) - 500) <= 200
        for micro in step:
            batch = data.collate(micro, ActiveTokens("all", None), 0)
            assert batch.input_ids.numel() == sum(lengths[row] for (row,) in micro) <= 300


def test_no_rows_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training rows"):
        plan_of([], step_tokens=1, micro_tokens=1, epochs=1, max_tokens=None, seed=0)
