"""Scores of marked and of written answers by the same rules, and nearness to the teacher.

In: rows, what was said to them, distributions. Out: `ExampleScores`. Knows nothing of files.

SQuAD v1.1's rules where every row has an answer, v2.0's where some have none: then no answer is
right where there is none, and whoever writes that there is none gives none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.evaluate.answer_scores import Gold, declines, score_answer
from potstill.evaluate.extractive.answering import Answered
from potstill.evaluate.marked import MarkScores, kl_of_places
from potstill.evaluate.metrics import ExampleScores
from potstill.models.spans.decoding import best, marginals
from potstill.models.spans.marks import Marks
from potstill.models.spans.reader import SpanReader
from potstill.models.spans.rows import REFUSAL, SpanRow
from potstill.models.spans.windows import Windows


def gold_of_row(row: SpanRow, *, v2: bool) -> Gold:
    """What an answer to the row is compared with; no answers: it has none."""
    example = row.example
    texts = example.answers or (example.turns[-1].content,)
    return Gold(
        id=row.id,
        answers=() if row.start is None else tuple(one for one in texts if one.strip()),
        kind="qa",
        question=row.question,
        passage=row.passage,
        v2=v2,
    )


def scores_of(
    rows: Sequence[SpanRow], said: Sequence[Answered], near: Sequence[MarkScores] | None
) -> list[ExampleScores]:
    """Each row's scores. near: how near its distributions are to the teacher's, if measured."""
    v2 = any(row.start is None for row in rows)
    fidelity: Sequence[MarkScores | None] = near or [None] * len(rows)
    found = []
    for row, one, mark in zip(rows, said, fidelity, strict=True):
        text = "" if one.start is None and _declined(one.text, row) else one.text
        scores = score_answer(text, gold_of_row(row, v2=v2))
        found.append(ExampleScores(mark, replace(scores, refused=float(not text))))
    return found


def _declined(text: str, row: SpanRow) -> bool:
    """Whether a written answer says, in any words, that there is none."""
    example = row.example
    own = tuple(example.answers) if example.kind == REFUSAL else ()
    return declines(text, Gold(row.id, own, example.kind))


def nearness(
    reader: SpanReader, rows: Sequence[SpanRow], marks: Sequence[Marks]
) -> list[MarkScores]:
    """How near the reader's distributions are to what a teacher said of each row."""
    found = []
    for row, told in zip(rows, marks, strict=True):
        if not told.spans:
            found.append(MarkScores())
            continue
        ((windows, own),) = reader.scored([(row.question, row.passage)])
        likeliest = told.likeliest
        wanted = windows.tokens_of(*likeliest) if likeliest else None
        answer = best(windows, row.passage, own, 0.0)
        given = windows.tokens_of(answer.start, answer.end) if answer.answer else None
        kl = kl_of_places(_places(told, windows), marginals(own))
        found.append(MarkScores(kl, float(wanted == given), 1.0))
    return found


def _places(marks: Marks, windows: Windows) -> Tensor:
    """[2, tokens + 1]: the teacher's probabilities of each token, and last of no answer."""
    spans, none = marks.probabilities(1.0)
    found = torch.zeros(2, len(windows.offsets) + 1, dtype=torch.float64)
    found[:, -1] += none
    for span, probability in zip(marks.spans, spans, strict=True):
        place = windows.tokens_of(*span)
        first, last = place or (-1, -1)
        found[0, first] += probability
        found[1, last] += probability
    return found
