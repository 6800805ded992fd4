"""How near a student's next-token distribution is to its teacher's, token by token.

In: last hidden states of both on the same tokens, both output layers. Out: sums an example.
Knows nothing of intervals or of how the states were made.

Row r of an example holds the distribution of token r + 1 given tokens 0..r; an example of L
tokens has L - 1 rows, and its answer's rows begin at answer_start - 1. Divergences are in nats:

    kl          sum over the vocabulary of p_teacher * (log p_teacher - log p_student)
    agree       1 where both rank the same token first
    nll         -log p_student(token r + 1), the text's own next token
    reverse_kl  sum over the vocabulary of p_student * (log p_student - log p_teacher)
    top5        share of the teacher's five likeliest tokens that are among the student's five
    rank        Spearman's correlation of both logits over the teacher's ten likeliest tokens
    confidence  the student's probability of its own likeliest token
    correct     1 where that token is the text's own next token

Logits exist only for `rows_at_once` positions at a time, in float32; sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.models.output import OutputLayer

ROWS = ("kl", "agree", "nll", "reverse_kl", "top5", "rank", "confidence", "correct")
TOP, RANKED = 5, 10
BINS = 15
"""Equal bins of confidence, as Guo et al. 2017 (On Calibration of Modern Neural Networks)."""
POSITIONS = (1, 2, 3, 5, 9, 17, 33)
"""First answer tokens of the bins of position; each ends where the next begins."""


@dataclass(frozen=True)
class FidelityScores:
    """Sums over the rows of one example; `*_answer` over its answer's rows only.

    gaps: of each bin of confidence, the sum of confidence - correct over its rows; their sizes
    over all examples, summed and divided by the rows, are the expected calibration error.
    positions: of each bin of `POSITIONS`, the answer rows' sums (rows, kl, agree).
    """

    tokens: int
    answer_tokens: int
    kl: float
    kl_answer: float
    agree: float
    agree_answer: float
    nll: float
    nll_answer: float
    reverse_kl: float = 0.0
    reverse_kl_answer: float = 0.0
    top5: float = 0.0
    top5_answer: float = 0.0
    rank: float = 0.0
    rank_answer: float = 0.0
    bytes: int = 0
    bytes_answer: int = 0
    gaps: Sequence[float] = ()
    gaps_answer: Sequence[float] = ()
    positions: Sequence[Sequence[float]] = ()


def row_scores(
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    targets: Tensor,
    teacher_head: OutputLayer,
    student_head: OutputLayer,
    rows_at_once: int = 256,
) -> Tensor:
    """`ROWS` of each position: [8, rows] float64.

    teacher_hidden [rows, teacher width], student_hidden [rows, student width] of any dtype,
    targets [rows] token ids.
    """
    parts = []
    for start in range(0, len(targets), rows_at_once):
        chunk = slice(start, start + rows_at_once)
        teacher = torch.log_softmax(teacher_head.logits(teacher_hidden[chunk]), dim=-1)
        student = torch.log_softmax(student_head.logits(student_hidden[chunk]), dim=-1)
        nll = -student.gather(1, targets[chunk, None])[:, 0]
        top, theirs = teacher.topk(min(RANKED, teacher.shape[1]), dim=-1)
        said, ours = student.topk(min(TOP, student.shape[1]), dim=-1)
        shared = (theirs[:, :TOP, None] == ours[:, None, :]).any(-1).float().mean(-1)
        rank = _spearman(top, student.gather(1, theirs))
        agree, correct = ours[:, 0] == theirs[:, 0], ours[:, 0] == targets[chunk]
        gap = teacher - student
        kl = torch.linalg.vecdot(teacher.exp_(), gap)
        reverse = -torch.linalg.vecdot(student.exp_(), gap)
        rows = (kl, agree, nll, reverse, shared, rank, said[:, 0].exp(), correct)
        parts.append(torch.stack([one.double() for one in rows]))
    return torch.cat(parts, dim=1) if parts else torch.zeros(len(ROWS), 0, dtype=torch.float64)


def _spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each row: [rows, k], [rows, k] -> [rows]; equal values in a's order.

    1 - 6 sum d^2 / (k (k^2 - 1)), d the differences of the ranks (Spearman 1904).
    """
    k = a.shape[1]
    if k < 2:
        return torch.ones(len(a))
    ranks = [one.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) for one in (a, b)]
    apart = (ranks[0] - ranks[1]).double().square().sum(-1)
    return 1 - 6 * apart / (k * (k * k - 1))


def example_scores(rows: Tensor, answer_start: int, sizes: tuple[int, int]) -> FidelityScores:
    """Sum the rows [8, L - 1] of a whole example and of its answer.

    sizes: bytes of the text that the rows predict, and of the answer's.
    """
    answer = rows[:, answer_start - 1 :]
    found: dict[str, float] = {}
    for part, ending in ((rows, ""), (answer, "_answer")):
        sums: Sequence[float] = part.sum(dim=1).tolist()
        found |= {f"{name}{ending}": sums[place] for place, name in enumerate(ROWS[:6])}
    return FidelityScores(
        tokens=rows.shape[1],
        answer_tokens=answer.shape[1],
        bytes=sizes[0],
        bytes_answer=sizes[1],
        gaps=_gaps(rows),
        gaps_answer=_gaps(answer),
        positions=_positions(answer),
        **found,
    )


def _gaps(rows: Tensor) -> list[float]:
    """confidence - correct, summed within each bin (i / 15, (i + 1) / 15]."""
    confidence, correct = rows[ROWS.index("confidence")], rows[ROWS.index("correct")]
    place = (torch.ceil(confidence * BINS).long() - 1).clamp(0, BINS - 1)
    sums = torch.zeros(BINS, dtype=torch.float64)
    found: list[float] = sums.index_add_(0, place, confidence - correct).tolist()
    return found


def _positions(answer: Tensor) -> list[list[float]]:
    """(rows, kl, agree) of each bin of position."""
    found = []
    for start, end in zip(POSITIONS, (*POSITIONS[1:], None), strict=True):
        part = answer[:2, start - 1 : end and end - 1]
        found.append([float(part.shape[1]), *part.sum(dim=1).tolist()])
    return found
