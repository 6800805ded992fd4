"""How near a student's next-token distribution is to its teacher's, token by token.

In: last hidden states of both on the same tokens, both output layers. Out: sums an example.
Knows nothing of intervals or of how the states were made.

Row r of an example holds the distribution of token r + 1 given tokens 0..r; an example of L
tokens has L - 1 rows, and its answer's rows begin at answer_start - 1. All in nats:

    kl       sum over the vocabulary of p_teacher * (log p_teacher - log p_student)
    agree    1 where both rank the same token first
    nll      -log p_student(token r + 1), the text's own next token

Logits exist only for `rows_at_once` positions at a time, in float32; sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.models.output import OutputLayer


@dataclass(frozen=True)
class FidelityScores:
    """Sums over the rows of one example; `*_answer` over its answer's rows only."""

    tokens: int
    answer_tokens: int
    kl: float
    kl_answer: float
    agree: float
    agree_answer: float
    nll: float
    nll_answer: float


def row_scores(
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    targets: Tensor,
    teacher_head: OutputLayer,
    student_head: OutputLayer,
    rows_at_once: int = 256,
) -> Tensor:
    """kl, agree and nll of each row: [3, rows] float64.

    teacher_hidden [rows, teacher width], student_hidden [rows, student width] of any dtype,
    targets [rows] token ids.
    """
    parts = []
    for start in range(0, len(targets), rows_at_once):
        chunk = slice(start, start + rows_at_once)
        teacher = torch.log_softmax(teacher_head.logits(teacher_hidden[chunk]), dim=-1)
        student = torch.log_softmax(student_head.logits(student_hidden[chunk]), dim=-1)
        nll = -student.gather(1, targets[chunk, None])[:, 0]
        agree = (teacher.argmax(-1) == student.argmax(-1)).float()
        kl = torch.linalg.vecdot(teacher.exp(), teacher - student)
        parts.append(torch.stack([kl, agree, nll]).double())
    return torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, dtype=torch.float64)


def example_scores(rows: Tensor, answer_start: int) -> FidelityScores:
    """Sum the rows [3, L - 1] of a whole example and of its answer."""
    whole: Sequence[float] = rows.sum(dim=1).tolist()
    answer_rows = rows[:, answer_start - 1 :]
    answer: Sequence[float] = answer_rows.sum(dim=1).tolist()
    return FidelityScores(
        tokens=rows.shape[1],
        answer_tokens=answer_rows.shape[1],
        kl=whole[0],
        kl_answer=answer[0],
        agree=whole[1],
        agree_answer=answer[1],
        nll=whole[2],
        nll_answer=answer[2],
    )
