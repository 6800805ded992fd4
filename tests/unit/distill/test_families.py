"""Rows that share a beginning give, in one sequence, what they give one by one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.distill import preflight, probe
from potstill.distill.attention import use
from potstill.distill.batches import (
    MicroBatch,
    Row,
    RowSet,
    active_counts,
    encode_rows,
)
from potstill.distill.config import DistillConfig
from potstill.distill.families import (
    LEAST_GAIN,
    Family,
    group,
    sequence_tokens,
    shared_tokens,
)
from potstill.distill.objective import ActiveTokens, Objective
from potstill.distill.packing import plan_steps
from potstill.distill.signals import CacheFormat, LiveTeacher, open_cache
from potstill.distill.steps import Step, Steps
from potstill.distill.trainer import DistillTrainer
from potstill.errors import TrainingError
from potstill.models.prefixes import common_prefix
from potstill.models.surgery import drop_layers
from potstill.records import Example

OBJECTIVE = Objective(kd_weight=1.0, kd_tokens="all", ce_weight=0.3, ce_tokens="answer")
PASSAGE = (
    "The boiler of unit 7 holds 1250 litres and is drained every 14 days. Valve B2 opens at 3.5 "
    "bar; the keeper notes the time in the log. What does the keeper note? The keeper notes the "
    "time. "
)
ENDS = (
    ("How many litres?", "1250 litres"),
    ("How many days?", "14 days"),
    ("How many days are there?", "14"),
    ("Who notes it?", "the keeper"),
)


@pytest.fixture
def rows(tokenizer: Any, make_row: Callable[..., Example]) -> list[Row]:
    """Two passages with four questions each, the same row twice, and a row on its own."""
    asked = [(PASSAGE, *end) for end in ENDS] + [(PASSAGE[60:] + PASSAGE, *end) for end in ENDS]
    asked += [(PASSAGE, *ENDS[0]), ("The log.", "What?", "the log")]
    examples = [make_row(f"row{number}", *one) for number, one in enumerate(asked)]
    return encode_rows(examples, tokenizer, 500)


def together(rows: list[Row], packed: bool = False) -> RowSet:
    return RowSet(rows, group([row.ids for row in rows], computed=1000, in_full=5000), packed)


def ids_of(rows: Sequence[Sequence[int]], family: Family) -> list[Sequence[int]]:
    return [rows[number] for number in family]


def computed(members: Sequence[Sequence[int]]) -> int:
    return sequence_tokens([len(ids) for ids in members], shared_tokens(members))


def test_rows_about_one_passage_become_a_family(rows: list[Row]) -> None:
    families = together(rows).families
    assert sorted(map(sorted, families)) == [[0, 1, 2, 3, 8], [4, 5, 6, 7], [9]]
    ids = [row.ids for row in rows]
    for family in families[:-1]:
        members = ids_of(ids, family)
        assert computed(members) < 0.5 * sum(map(len, members))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 80), st.integers(1, 9)), max_size=14),
    st.integers(10, 400),
    st.integers(10, 900),
)
def test_every_row_is_in_one_family_that_saves_and_fits(
    drawn: list[tuple[int, int, int]], most: int, in_full: int
) -> None:
    rows = [(kind, *range(shared), *[90 + own] * own) for kind, shared, own in drawn]
    families = group(rows, computed=most, in_full=in_full)
    assert sorted(number for family in families for number in family) == list(range(len(rows)))
    for family in families:
        members = ids_of(rows, family)
        total = sum(map(len, members))
        assert computed(members) <= total - LEAST_GAIN * (len(family) - 1)
        if len(family) > 1:
            assert computed(members) <= most
            assert total <= in_full
            shared = shared_tokens(members)
            assert all(common_prefix(members[0], one) >= shared for one in members)


def test_a_row_does_not_join_where_it_would_make_the_others_share_less() -> None:
    instructions = list(range(1000, 1200))
    rows = [
        [*instructions, *range(passage, passage + 100), *[passage + 500 + question] * 50]
        for passage in (2000, 3000)
        for question in range(4)
    ]
    families = group(rows, computed=4000, in_full=9000)
    assert sorted(map(sorted, families)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_long_beginnings_are_shared_too() -> None:
    rows = [[*range(1500), 2000 + question, 3] for question in range(6)]
    assert len(group(rows, computed=8192, in_full=100_000)) == 1
    assert len(group(rows, computed=8192, in_full=6100)) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_states_of_a_family_are_those_of_its_rows(
    teacher: Any, rows: list[Row], packed: bool
) -> None:
    data = together(rows, packed)
    batch = data.collate(data.families, ActiveTokens("all", "all"), padding=0)
    with torch.no_grad():
        alone = [
            teacher.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0] for row in rows
        ]
        if packed:
            use(teacher)
        states = teacher.model(**batch.inputs()).last_hidden_state.flatten(0, 1)
    for number, span in zip(batch.rows, batch.spans, strict=True):
        torch.testing.assert_close(states[span.flat()], alone[number], rtol=1e-5, atol=1e-5)
    assert batch.kd_counts.sum() == sum(row.predictions for row in rows)
    assert len(batch.positions) < 0.6 * sum(row.predictions for row in rows)


def trainer_of(teacher: Any, data: RowSet, folder: Path) -> Any:
    from transformers import TrainingArguments

    teacher = copy.deepcopy(teacher)
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    if data.packed:
        use(teacher)
        use(student)
    signal = LiveTeacher(teacher, torch.float32)
    return DistillTrainer(
        student,
        signal,
        signal,
        OBJECTIVE,
        Steps(data, [[list(data.families)]], OBJECTIVE.active, 0),
        data,
        vocabulary=signal.output.words,
        dtype=torch.float32,
        config=DistillConfig(teacher="t"),
        arguments=TrainingArguments(
            str(folder), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
        ),
        callbacks=[],
    )


def test_loss_gradient_and_held_out_figures_are_those_of_separate_rows(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    results = []
    for data in (RowSet.apart(rows), together(rows), together(rows, packed=True)):
        trainer = trainer_of(teacher, data, tmp_path)
        # Two micro-batches: a family must weigh the same whatever it stands beside.
        halves = [data.families[::2], data.families[1::2]]
        batches = [data.collate(half, OBJECTIVE.active, 0) for half in halves]
        step = Step(tuple(batches), active_counts(rows, OBJECTIVE.active), data)
        trainer.config = trainer.config.model_copy(update={"term_gradients": False})
        loss = trainer.training_step(trainer.model, step)
        gradients = {name: one.grad for name, one in trainer.model.named_parameters()}
        results.append((float(loss), gradients, trainer.figures, trainer.held_out()))
    apart = results[0]
    for shared in results[1:]:
        assert shared[0] == pytest.approx(apart[0], rel=1e-5)
        for name, gradient in apart[1].items():
            error = (shared[1][name] - gradient).norm() / gradient.norm()
            assert error < 1e-5, f"{name} differs by {error:.1e}"
        assert shared[2] == pytest.approx(apart[2], rel=1e-5)
        assert shared[3] == pytest.approx(apart[3], rel=1e-5)


def test_the_cache_of_families_is_that_of_rows(
    teacher: Any, rows: list[Row], tmp_path: Path
) -> None:
    live = LiveTeacher(teacher, torch.float32)
    found = []
    for name, data in (("apart", RowSet.apart(rows)), ("together", together(rows))):
        form = CacheFormat("hidden_bf16")
        cache = open_cache(tmp_path / name, live, "t", data, form, lambda done, of: None)
        batch = data.collate(data.families, OBJECTIVE.active, padding=0)
        states, known = cache.tokens(rows, batch).states, live.tokens(rows, batch).states
        torch.testing.assert_close(states.float(), known, rtol=0.02, atol=0.02)
        found.append(sum(file.stat().st_size for file in (tmp_path / name).iterdir()))
    assert found[1] < 0.7 * found[0]  # a beginning is stored once


def test_the_plan_keeps_families_whole_and_counts_every_row_in_full(rows: list[Row]) -> None:
    data = together(rows)
    budget = {"step_tokens": 300, "micro_tokens": 400, "max_tokens": None, "seed": 3}
    plan = plan_steps(data, epochs=1, **budget)
    assert sorted(family for step in plan for micro in step for family in micro) == sorted(
        data.families
    )
    steps = Steps(data, plan, OBJECTIVE.active, 0)
    assert steps.tokens_after[-1] == sum(len(row.ids) for row in rows)


def planted(rows: list[Row], change: Any, packed: bool = False) -> None:
    data = together(rows, packed)
    batch = data.collate(data.families, OBJECTIVE.active, padding=0)
    preflight.check_batch(rows, batch, OBJECTIVE.active)
    preflight.check_batch(rows, dataclasses.replace(batch, **change(batch)), OBJECTIVE.active)


def see_each_other(batch: MicroBatch) -> dict[str, Any]:
    assert batch.attention_mask is not None
    return {"attention_mask": torch.ones_like(batch.attention_mask).tril()}


def hide_the_beginning(batch: MicroBatch) -> dict[str, Any]:
    assert batch.attention_mask is not None
    hidden = batch.attention_mask.clone()
    hidden[..., 0] = False
    return {"attention_mask": hidden}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (see_each_other, "see tokens that are not before it"),
        (hide_the_beginning, "or hides some"),
        (
            lambda batch: {"position_ids": torch.arange(batch.input_ids.shape[1]).expand(3, -1)},
            "count its positions from its own beginning",
        ),
        (lambda batch: {"kd_counts": batch.kd_counts.clamp(max=1)}, "counts a prediction 1 times"),
        (lambda batch: {"input_ids": batch.input_ids.roll(1, 1)}, "other tokens than the row"),
    ],
)
def test_a_family_that_is_misbuilt_is_refused(rows: list[Row], change: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        planted(rows, change)


def changed_segment(batch: MicroBatch, **change: Any) -> dict[str, Any]:
    assert batch.segments is not None
    first, *others = batch.segments
    return {"segments": (dataclasses.replace(first, **change), *others)}


def see_all_in_the_segment(batch: MicroBatch) -> dict[str, Any]:
    assert batch.segments is not None
    length = batch.segments[0].length
    return changed_segment(batch, visible=torch.ones(length, length).tril().bool())


def join_two_segments(batch: MicroBatch) -> dict[str, Any]:
    assert batch.segments is not None
    first, second, *others = batch.segments
    length = first.length + second.length
    whole = dataclasses.replace(first, length=length, visible=torch.ones(length, length).bool())
    return {"segments": (whole, *others)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (see_all_in_the_segment, "see tokens that are not before it"),
        (join_two_segments, "see tokens that are not before it"),
        (lambda batch: {"segments": batch.segments[1:]}, "stands in no segment"),
        (lambda batch: changed_segment(batch, length=20, visible=None), "goes beyond its segment"),
        (
            lambda batch: {"position_ids": torch.arange(batch.input_ids.shape[1]).unsqueeze(0)},
            "count its positions from its own beginning",
        ),
    ],
)
def test_a_pack_that_is_misbuilt_is_refused(rows: list[Row], change: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        planted(rows, change, packed=True)


def test_a_layout_is_used_where_the_model_says_the_same_in_it(
    teacher: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    for packed in (True, False):
        for share in (True, False):
            assert probe.says_the_same(teacher, rows, packed=packed, share=share)
    # Attention that looks across the border of two segments.
    monkeypatch.setattr(
        "potstill.distill.attention._blocks",
        lambda segments, window, device: iter(
            [(slice(0, n), slice(0, n), torch.full((n, n), -torch.inf).triu(1))]
            for n in [segments[-1].start + segments[-1].length]
        ).__next__(),
    )
    assert not probe.says_the_same(teacher, rows, packed=True, share=False)
    assert teacher.config._attn_implementation == "sdpa"
