"""Each silent failure is planted, and must be caught with a clear error."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from potstill.distill import preflight
from potstill.distill.batches import MicroBatch, Row, RowSet, collate
from potstill.distill.objective import ActiveTokens
from potstill.distill.teacher_rows import TeacherRows
from potstill.errors import TrainingError
from potstill.models.align import Span
from potstill.models.surgery import drop_layers
from potstill.records import Example

BOTH = ActiveTokens("all", "answer")
Check = Callable[..., int]


@pytest.fixture
def check(teacher: Any, tokenizer: Any, rows: list[Row], examples: list[Example]) -> Check:
    """check(**planted) runs all checks on sound material, with the planted parts swapped in."""

    def run(**planted: Any) -> int:
        student = drop_layers(copy.deepcopy(teacher), [0])
        sound: dict[str, Any] = {
            "rows": rows,
            "validation": rows[:2],
            "examples": examples,
            "teacher": teacher,
            "student": student,
            "teacher_tokenizer": tokenizer,
            "student_tokenizer": tokenizer,
        }
        batches = planted.pop("batches", lambda number: collate(rows, [(number,)], BOTH, 0))
        vocabulary = preflight.check_models(**(sound | planted))
        preflight.check_anything_active(RowSet.apart((sound | planted)["rows"]), BOTH)
        preflight.check_batches(rows, batches, len(rows), BOTH)
        return vocabulary

    return run


def test_sound_material_passes_and_names_the_shared_vocabulary(
    check: Check, tokenizer: Any
) -> None:
    assert check() == len(tokenizer)
    assert check(teacher_tokenizer=copy.deepcopy(tokenizer)) == len(tokenizer)


def test_padded_vocabularies_are_cut_to_the_tokenizers_words(
    check: Check, teacher: Any, tokenizer: Any
) -> None:
    student = copy.deepcopy(teacher)
    student.resize_token_embeddings(len(tokenizer) + 40)
    assert check(student=student) == len(tokenizer)
    teacher.resize_token_embeddings(len(tokenizer) + 24)
    teacher.requires_grad_(False)
    assert check(teacher=teacher, student=student) == len(tokenizer)


def test_another_vocabulary(check: Check, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<extra>"])
    with pytest.raises(TrainingError, match="different vocabularies"):
        check(teacher_tokenizer=other)


def test_an_output_layer_smaller_than_the_tokenizer(
    check: Check, teacher: Any, tokenizer: Any
) -> None:
    student = copy.deepcopy(teacher)
    student.resize_token_embeddings(len(tokenizer) - 5)
    with pytest.raises(TrainingError, match=f"knows {len(tokenizer)} tokens"):
        check(student=student)


def test_another_chat_template(check: Check, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = "Dear model, " + tokenizer.chat_template
    with pytest.raises(TrainingError, match="differ in chat_template"):
        check(teacher_tokenizer=other)


def test_a_begin_of_sequence_token_on_one_side_only(
    tokenizer: Any, examples: list[Example]
) -> None:
    bare, with_start = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    for one in (bare, with_start):
        one.bos_token = "<|endoftext|>"
    with_start.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(TrainingError, match="begin-of-sequence token on one side only"):
        preflight.check_prompts(examples[0], bare, with_start)


def test_a_teacher_in_training_mode(check: Check, teacher: Any) -> None:
    teacher.model.layers[2].train()
    with pytest.raises(TrainingError, match="in training mode"):
        check()


def test_a_teacher_that_takes_gradients(check: Check, teacher: Any) -> None:
    teacher.model.norm.weight.requires_grad_(True)
    with pytest.raises(TrainingError, match="take gradients"):
        check()


def test_an_answer_without_its_end_token(check: Check, rows: list[Row]) -> None:
    rows[4] = dataclasses.replace(rows[4], ids=rows[4].ids[:-1])
    with pytest.raises(TrainingError, match=r"row row4 does not end in the end-of-turn token"):
        check()


def test_a_tokenizer_without_an_end_token(check: Check, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    with pytest.raises(TrainingError, match="no end-of-sequence token"):
        check(student_tokenizer=other, teacher_tokenizer=other)


def test_an_empty_answer(check: Check, rows: list[Row]) -> None:
    start = rows[3].answer_start
    rows[3] = dataclasses.replace(rows[3], ids=(*rows[3].ids[:start], rows[3].ids[-1]))
    with pytest.raises(TrainingError, match="Row row3 has an empty answer"):
        check()


def test_a_row_longer_than_the_model(check: Check, teacher: Any, rows: list[Row]) -> None:
    teacher.config.max_position_embeddings = 30
    with pytest.raises(TrainingError, match="the model takes 30 at most") as caught:
        check()
    assert "sequence_tokens to 30" in caught.value.hint


def test_a_token_beyond_the_output_layer(check: Check, rows: list[Row]) -> None:
    rows[1] = dataclasses.replace(rows[1], ids=(9999, *rows[1].ids[1:]))
    with pytest.raises(TrainingError, match="Row row1 holds token 9999"):
        check()


def test_all_tokens_masked(check: Check, rows: list[Row]) -> None:
    bare = [dataclasses.replace(row, answer_start=len(row.ids), bare=True) for row in rows]
    with pytest.raises(TrainingError, match="No token of any row is active for ce_tokens"):
        check(rows=bare)


def test_every_row_cut_short(check: Check, rows: list[Row]) -> None:
    cut = [dataclasses.replace(row, truncated=True) for row in rows]
    with pytest.raises(TrainingError, match="All 12 rows are longer"):
        check(rows=cut, validation=[])


def _planted(change: Callable[[MicroBatch], MicroBatch], check: Check, rows: list[Row]) -> None:
    check(batches=lambda number: change(collate(rows, [(number,), ((number + 1) % 12,)], BOTH, 2)))


def test_padding_that_is_eos_and_masks_the_end_token(
    check: Check, rows: list[Row], tokenizer: Any
) -> None:
    def plant(batch: MicroBatch) -> MicroBatch:
        kept = batch.targets != tokenizer.eos_token_id
        return dataclasses.replace(batch, ce_counts=batch.ce_counts * kept)

    with pytest.raises(TrainingError, match="masks the end token for ce"):
        _planted(plant, check, rows)


def test_a_mask_that_is_not_shifted(check: Check, rows: list[Row]) -> None:
    def plant(batch: MicroBatch) -> MicroBatch:
        return dataclasses.replace(batch, ce_counts=batch.ce_counts.roll(1))

    with pytest.raises(TrainingError, match="not shifted"):
        _planted(plant, check, rows)


def test_targets_that_are_not_shifted(check: Check, rows: list[Row]) -> None:
    def plant(batch: MicroBatch) -> MicroBatch:
        return dataclasses.replace(batch, targets=batch.input_ids.flatten()[batch.positions])

    with pytest.raises(TrainingError, match="not the tokens that follow"):
        _planted(plant, check, rows)


def test_padding_that_counts_as_text(check: Check, rows: list[Row]) -> None:
    def plant(batch: MicroBatch) -> MicroBatch:
        longest = batch.input_ids.shape[1]
        short = min(range(2), key=lambda place: len(rows[batch.rows[place]].ids))
        last = torch.tensor([short * longest + longest - 2])
        return dataclasses.replace(
            batch,
            positions=torch.cat([batch.positions, last]),
            targets=torch.cat([batch.targets, torch.tensor([2])]),
            kd_counts=torch.cat([batch.kd_counts, torch.ones(1)]),
            ce_counts=torch.cat([batch.ce_counts, torch.zeros(1)]),
            hidden_counts=torch.cat([batch.hidden_counts, torch.zeros(1)]),
            attention_counts=torch.cat([batch.attention_counts, torch.zeros(1)]),
        )

    with pytest.raises(TrainingError, match="counts padding"):
        _planted(plant, check, rows)


def test_a_batch_of_other_tokens(check: Check, rows: list[Row]) -> None:
    def plant(batch: MicroBatch) -> MicroBatch:
        return dataclasses.replace(batch, input_ids=batch.input_ids.flip(0))

    with pytest.raises(TrainingError, match="other tokens than the row"):
        _planted(plant, check, rows)


def test_spans_of_which_none_is_an_answers_are_a_silent_term(rows: list[Row]) -> None:
    """With alignment the divergence is a mean over spans, so these are what must be there."""
    answers = ActiveTokens(kd="answer", ce="answer")
    question = Span((1, 2), (1, 2), 3, answer=False)
    answer = Span((2, 3), (2, 3), 3, answer=True)
    for spans, silent in (((question, answer), False), ((question,), True), ((), True)):
        data = RowSet(rows[:1], [(0,)], teacher=TeacherRows(rows[:1], [spans]))
        if not silent:
            preflight.check_anything_active(data, answers)
            continue
        with pytest.raises(TrainingError, match="No span of any row is active for kd_tokens"):
            preflight.check_anything_active(data, answers)
        if spans:
            preflight.check_anything_active(data, ActiveTokens(kd="all", ce="answer"))
