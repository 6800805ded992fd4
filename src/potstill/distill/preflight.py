"""Checks before the first step: what silently ruins distillation is refused, loudly.

In: rows, tokenizers, teacher, student, and a batch as the trainer will see it. Out: nothing, or one
TrainingError that says what is wrong and how to mend it. Knows nothing of optimizers.

Each check stands for a failure that other projects have had without noticing: the loss falls,
and the student is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.distill.alignment import different_vocabularies
from potstill.distill.batches import MicroBatch, Row, RowSet, counted
from potstill.distill.objective import ActiveTokens
from potstill.errors import TrainingError
from potstill.models.chat import encode_example
from potstill.models.output import output_layer
from potstill.records import Example

SAMPLED_BATCHES = 8


def check_models(
    *,
    rows: Sequence[Row],
    validation: Sequence[Row],
    examples: Sequence[Example],
    teacher: Any,
    student: Any,
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    teacher_rows: Sequence[Row] | None = None,
) -> int:
    """Models, tokenizers and rows, before anything is computed with them.

    teacher_rows: training and held-out rows in the teacher's own tokens, if it has another
    tokenizer. Returns the number of the student's words that count (`check_vocabulary`).
    """
    check_teacher(teacher)
    if teacher_rows is not None:
        words = check_vocabulary(teacher_tokenizer, teacher)
        check_rows(teacher_rows, teacher_tokenizer, words, teacher)
        vocabulary = check_vocabulary(student_tokenizer, student)
        check_rows([*rows, *validation], student_tokenizer, vocabulary, student)
        return vocabulary
    check_tokenizers(teacher_tokenizer, student_tokenizer)
    vocabulary = check_vocabulary(student_tokenizer, teacher, student)
    for example in examples[:SAMPLED_BATCHES]:
        check_prompts(example, teacher_tokenizer, student_tokenizer)
    check_rows([*rows, *validation], student_tokenizer, vocabulary, teacher, student)
    return vocabulary


def check_batches(
    rows: Sequence[Row], batches: Callable[[int], MicroBatch], count: int, active: ActiveTokens
) -> None:
    """Some in even distances. batches(i): the i-th of `count`, exactly as it will be trained on."""
    stride = max(1, count // SAMPLED_BATCHES)
    for number in range(0, count, stride):
        check_batch(rows, batches(number), active)


def check_tokenizers(teacher: Any, student: Any) -> None:
    """Teacher and student must read and write the same tokens."""
    if teacher is student:
        return
    if teacher.get_vocab() != student.get_vocab():
        raise different_vocabularies()
    for name in ("bos_token_id", "eos_token_id", "chat_template"):
        if getattr(teacher, name, None) != getattr(student, name, None):
            raise TrainingError(
                f"Teacher and student differ in {name}, so they would be prompted differently.",
                "Save the teacher's tokenizer beside the student.",
            )


def check_vocabulary(tokenizer: Any, *models: Any) -> int:
    """Words that count: the tokenizer's. Output rows beyond them are padding, of every model."""
    rows = [output_layer(model).words for model in models]
    needed = int(max(tokenizer.get_vocab().values())) + 1
    if min(rows) < needed:
        raise TrainingError(
            f"The tokenizer knows {needed} tokens, but the output layers of its models have "
            f"{' and '.join(map(str, rows))} rows.",
            "Use the tokenizer that belongs to the model.",
        )
    return needed


def check_teacher(model: Any) -> None:
    """The teacher must be in evaluation mode (no dropout) and must not be trained along."""
    if any(module.training for module in model.modules()):
        raise TrainingError(
            "The teacher is in training mode; dropout would make its distribution noise.",
            "Call teacher.eval().",
        )
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "The teacher's weights take gradients; it would be trained along.",
            "Call teacher.requires_grad_(False).",
        )


def check_prompts(example: Example, teacher: Any, student: Any) -> None:
    """Both sides must see the same ids for the same conversation, the first token included."""
    if teacher is student:
        return
    limit = 1 << 20
    ours, theirs = (
        encode_example(tokenizer, example.turns, limit).ids for tokenizer in (student, teacher)
    )
    if ours == theirs:
        return
    start = student.bos_token_id
    one_sided = start is not None and (ours[:1] == [start]) != (theirs[:1] == [start])
    what = "a begin-of-sequence token on one side only" if one_sided else "different token ids"
    raise TrainingError(
        f"Teacher and student encode row {example.id} with {what}.",
        "Use the teacher's tokenizer and chat template for the student too.",
    )


def check_rows(rows: Sequence[Row], tokenizer: Any, vocabulary: int, *models: Any) -> None:
    """Every row must fit the models, have an answer, and end in the token that ends a turn."""
    end = tokenizer.eos_token_id
    if end is None:
        raise TrainingError(
            "The tokenizer has no end-of-sequence token, so the student would never learn to stop.",
            "Set eos_token in the teacher's tokenizer configuration.",
        )
    limit = min(map(positions, models))
    for row in rows:
        if len(row.ids) > limit:
            raise TrainingError(
                f"Row {row.id} has {len(row.ids)} tokens, the model takes {limit} at most.",
                f"Set distill.sequence_tokens to {limit} or less.",
            )
        if max(row.ids) >= vocabulary:
            raise TrainingError(
                f"Row {row.id} holds token {max(row.ids)}, but the tokenizer knows only "
                f"{vocabulary} tokens.",
                "Use the tokenizer that belongs to the model.",
            )
        if row.truncated or row.bare:
            continue
        answer = row.ids[row.answer_start :]
        if not answer or all(token == end for token in answer):
            raise TrainingError(
                f"Row {row.id} has an empty answer.", "Let curation reject rows without an answer."
            )
        if answer[-1] != end:
            raise TrainingError(
                f"The answer of row {row.id} does not end in the end-of-turn token {end}, so the "
                "student would never learn to stop.",
                "Mend the chat template, or set eos_token to the token that ends a turn.",
            )
    answering = [row for row in rows if not row.bare]
    if answering and all(row.truncated for row in answering):
        raise TrainingError(
            f"All {len(answering)} rows are longer than distill.sequence_tokens; no answer is "
            "whole.",
            "Raise distill.sequence_tokens, or make the chunks shorter.",
        )


def check_anything_active(data: RowSet, active: ActiveTokens) -> None:
    """Each term that has a weight must have something to count in the training rows, by the very
    counts that it is divided by."""
    counts = data.active_counts(range(len(data.rows)), active)
    for term, tokens in vars(active).items():
        if tokens is not None and counts[term] <= 0:
            name = f"{term}_tokens" if term in ("kd", "ce") else f"{term}.tokens"
            what = "span" if term == "kd" and data.teacher is not None else "token"
            raise TrainingError(
                f"No {what} of any row is active for {name}: {tokens}; that term would be silent.",
                "Set it to all, or give rows with answers.",
            )


Counts = tuple[float, ...]
"""For how many rows each term counts a prediction, in the order of `ActiveTokens`."""


def check_batch(rows: Sequence[Row], batch: MicroBatch, active: ActiveTokens) -> None:
    """A batch against the rows it was made of: shift, masks, padding, end tokens, and who sees
    whom where rows share a beginning."""
    found: dict[tuple[int, int], Counts] = {}
    counts = [getattr(batch, f"{term}_counts").tolist() for term in vars(active)]
    for position, target, *some in zip(
        batch.positions.tolist(), batch.targets.tolist(), *counts, strict=True
    ):
        found[position, target] = _added(found.get((position, target)), some)
    places = {number: span.flat() for number, span in zip(batch.rows, batch.spans, strict=True)}
    for number, flat in places.items():
        if tuple(batch.input_ids.flatten()[flat].tolist()) != rows[number].ids:
            raise _misbuilt(rows[number], "holds other tokens than the row")
        _check_sight(rows[number], flat, batch)
    wanted = _wanted(rows, {number: flat.tolist() for number, flat in places.items()}, active)
    text, counted = ({position for position, _ in some} for some in (wanted, found))
    for number, flat in places.items():
        for token, position in enumerate(flat.tolist()[:-1], 1):
            target = rows[number].ids[token]
            expected, got = wanted[position, target], found.get((position, target))
            if got is None and any(expected) and position in counted:
                raise _misbuilt(rows[number], "has targets that are not the tokens that follow")
            _check_counts(rows[number], token, active, expected, got or (0.0,) * len(expected))
    for position, target in found:
        if position not in text:
            raise _misbuilt(rows[batch.rows[0]], "counts padding as if it were text")
        if (position, target) not in wanted:
            raise _misbuilt(rows[batch.rows[0]], "has targets that are not the tokens that follow")


def _wanted(
    rows: Sequence[Row], places: Mapping[int, Sequence[int]], active: ActiveTokens
) -> dict[tuple[int, int], Counts]:
    """(position, target) -> how many rows count that prediction for each term."""
    wanted: dict[tuple[int, int], Counts] = {}
    for number, flat in places.items():
        row = rows[number]
        for token in range(1, len(row.ids)):
            counts = [
                float(tokens == "all" or (tokens == "answer" and token >= row.answer_start))
                for tokens in vars(counted(row, active)).values()
            ]
            place = (flat[token - 1], row.ids[token])
            wanted[place] = _added(wanted.get(place), counts)
    return wanted


def _added(before: Counts | None, counts: Sequence[float]) -> Counts:
    return tuple(map(sum, zip(before or (0.0,) * len(counts), counts, strict=True)))


def _check_counts(row: Row, token: int, active: ActiveTokens, wanted: Counts, got: Counts) -> None:
    for term, expected, count in zip(vars(active), wanted, got, strict=True):
        if bool(expected) != bool(count):
            if token == len(row.ids) - 1 and expected and not row.truncated:
                raise _misbuilt(
                    row, f"masks the end token for {term}, as happens where padding is EOS"
                )
            raise _misbuilt(row, f"has a mask for {term} that is not shifted like the targets")
        if expected != count:
            raise _misbuilt(
                row, f"counts a prediction {count:g} times for {term}, not {expected:g}"
            )


def _check_sight(row: Row, flat: Tensor, batch: MicroBatch) -> None:
    """Each token has its position in the row, and sees the row's tokens up to itself, no other."""
    width = batch.input_ids.shape[1]
    line, columns = int(flat[0]) // width, flat % width
    if batch.segments is not None:
        _check_segment(row, flat, batch)
        return
    if batch.attention_mask is None or batch.position_ids is None:
        if not torch.equal(columns, torch.arange(len(flat))):
            raise _misbuilt(row, "does not start its positions at 0")
        return
    if batch.position_ids[line][columns].tolist() != list(range(len(flat))):
        raise _misbuilt(row, "does not count its positions from its own beginning")
    expected = torch.zeros(len(flat), width, dtype=torch.bool)
    expected[:, columns] = torch.ones(len(flat), len(flat)).tril().bool()
    if not torch.equal(batch.attention_mask[line, 0][columns], expected):
        raise _misbuilt(row, "lets the row see tokens that are not before it, or hides some")


def _check_segment(row: Row, flat: Tensor, batch: MicroBatch) -> None:
    """The same where attention stays within segments: exactly one holds the row."""
    assert batch.segments is not None
    assert batch.position_ids is not None
    if batch.position_ids[0][flat].tolist() != list(range(len(flat))):
        raise _misbuilt(row, "does not count its positions from its own beginning")
    holding = [one for one in batch.segments if one.start <= int(flat[0]) < one.start + one.length]
    if len(holding) != 1:
        raise _misbuilt(row, "stands in no segment, or in several")
    (segment,) = holding
    inside = flat - segment.start
    if int(inside.max()) >= segment.length:
        raise _misbuilt(row, "goes beyond its segment")
    expected = torch.zeros(len(flat), segment.length, dtype=torch.bool)
    expected[:, inside] = torch.ones(len(flat), len(flat)).tril().bool()
    if not torch.equal(segment.sight(None)[inside], expected):
        raise _misbuilt(row, "lets the row see tokens that are not before it, or hides some")


def _misbuilt(row: Row, what: str) -> TrainingError:
    return TrainingError(
        f"The batch with row {row.id} {what}.",
        "Do not train on it: whatever builds the batches must be mended first.",
    )


def positions(model: Any) -> int:
    """The longest row that the model takes, in tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 1 << 30
