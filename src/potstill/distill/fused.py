"""Output layer, divergence and cross-entropy in one: no logits of a whole batch ever exist.

In: last hidden states of N tokens of student and teacher, both output weights, per-token weights.
Out: the weighted loss, differentiable with respect to the student's hidden states and weight, and
each token's unweighted divergence and cross-entropy for the record.
Knows nothing of masks, steps or models: which tokens count, and how much, is in the weights.

    hidden [n, d] --chunk of rows--> logits (bf16 or fp32) --block of rows--> softmaxes (fp32)
                                        |                                        |
    grad hidden, grad weight <----------+------------- grad logits <-------------+

The gradients are formed in the forward pass, while a chunk's logits are there, so the backward
pass only scales them (as Liger kernels do: Hsu et al. 2024, arXiv:2410.10989). Matrix products
are done by chunks, which keeps them efficient; everything element-wise by blocks that fit into
the processor's cache, which makes it 2 to 5 times faster on a CPU. Rows whose weights are all
zero are never multiplied. Where student and teacher have different numbers of output rows
(vocabularies padded to a round number), only the `vocabulary` real ones that they share count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill.losses import LogDivergence, forward_kl_rows, per_token

CHUNK_BYTES = 96 << 20
"""Of a chunk's logits in fp32 (512 rows of 49,152 words): enough for full-speed products."""
BLOCK_ELEMENTS = {"cpu": 1 << 19}
"""Logits that are worked on element by element at a time; on a GPU the whole chunk."""


@dataclass(frozen=True)
class Terms:
    """What is asked of every token, all of length N; a weight of 0 means not asked."""

    targets: Tensor
    """int64: the token that really follows."""
    kd_weights: Tensor
    """fp32: weight of the divergence; the T^2 is applied here and is not part of it."""
    ce_weights: Tensor
    """fp32: weight of the cross-entropy."""


@dataclass(frozen=True)
class Scores:
    """The loss and what it is made of; `kd` and `ce` are [N], unweighted, without gradient.

    `kd` (with its T^2) is 0 for tokens whose kd weight is 0; likewise `ce`. `agree` is 1 where
    student and teacher name the same likeliest word, for tokens with a kd weight, if asked for.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    agree: Tensor | None


def linear_scores(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    terms: Terms,
    *,
    vocabulary: int,
    divergence: LogDivergence = forward_kl_rows,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    chunk_rows: int | None = None,
    agreement: bool = False,
) -> Scores:
    """sum_i kd_i T^2 D(teacher_i || student_i; T) + sum_i ce_i CE_i, and its parts.

    student_hidden: [N, d], student_weight: [V_s, d]; teacher_hidden: [N, d_t], teacher_weight:
    [V_t, d_t], both None where no token has a kd weight; vocabulary <= min(V_s, V_t) real words.
    dtype: of the matrix products. chunk_rows: rows multiplied at once (default by memory).
    """
    wanted = torch.is_grad_enabled()
    loss, kd, ce, agree = _LinearScores.apply(  # type: ignore[no-untyped-call]
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        terms,
        vocabulary,
        divergence,
        temperature,
        dtype,
        chunk_rows or max(1, CHUNK_BYTES // (4 * vocabulary)),
        agreement,
        wanted and student_hidden.requires_grad,
        wanted and student_weight.requires_grad,
    )
    return Scores(loss, kd, ce, agree if agreement else None)


class _LinearScores(torch.autograd.Function):
    """The chunked sum with its gradients formed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor | None,
        teacher_weight: Tensor | None,
        terms: Terms,
        vocabulary: int,
        divergence: LogDivergence,
        temperature: float,
        dtype: torch.dtype,
        chunk_rows: int,
        agreement: bool,
        hidden_needs_grad: bool,
        weight_needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device, count = student_hidden.device, student_hidden.shape[0]
        kd = torch.zeros(count, device=device)
        ce = torch.zeros(count, device=device)
        agree = torch.zeros(count if agreement else 0, device=device)
        weight = student_weight[:vocabulary].to(dtype)
        grad_hidden = torch.zeros_like(student_hidden) if hidden_needs_grad else None
        grad_weight = torch.zeros_like(student_weight) if weight_needs_grad else None
        if teacher_weight is not None:
            teacher_weight = teacher_weight[:vocabulary].to(dtype)
        # Tokens that want the teacher first, so that a chunk rarely mixes both kinds.
        asks_teacher = terms.kd_weights != 0
        taught = asks_teacher.nonzero()[:, 0]
        untaught = (~asks_teacher & (terms.ce_weights != 0)).nonzero()[:, 0]
        for rows in [*torch.split(taught, chunk_rows), *torch.split(untaught, chunk_rows)]:
            if not len(rows):
                continue
            hidden = student_hidden[rows].to(dtype)
            logits = hidden @ weight.T
            teacher_logits = None
            if terms.kd_weights[rows[0]] != 0:
                assert teacher_hidden is not None
                assert teacher_weight is not None
                teacher_logits = teacher_hidden[rows].to(dtype) @ teacher_weight.T
            grad = logits if hidden_needs_grad or weight_needs_grad else None
            step = max(1, BLOCK_ELEMENTS.get(device.type, CHUNK_BYTES) // vocabulary)
            for start in range(0, len(rows), step):
                block, part = rows[start : start + step], slice(start, start + step)
                _score_block(
                    block,
                    logits[part],
                    None if teacher_logits is None else teacher_logits[part],
                    terms,
                    divergence,
                    temperature,
                    (kd, ce, agree if agreement else None),
                    None if grad is None else grad[part],
                )
            if grad is not None and grad_hidden is not None:
                grad_hidden[rows] = (grad @ weight).to(grad_hidden.dtype)
            if grad is not None and grad_weight is not None:
                grad_weight[:vocabulary] += grad.T @ hidden
        loss = (kd * terms.kd_weights).sum() + (ce * terms.ce_weights).sum()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(kd, ce, agree)
        return loss, kd, ce, agree

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if float(grad_loss) != 1.0:  # the usual case needs no pass over the weight's gradient
            grad_hidden = None if grad_hidden is None else grad_hidden * grad_loss
            grad_weight = None if grad_weight is None else grad_weight * grad_loss
        return (grad_hidden, grad_weight, *([None] * 11))


def _score_block(
    rows: Tensor,
    logits: Tensor,
    teacher_logits: Tensor | None,
    terms: Terms,
    divergence: LogDivergence,
    temperature: float,
    results: tuple[Tensor, Tensor, Tensor | None],
    grad: Tensor | None,
) -> None:
    """Fill `results` at `rows`, and `grad` (which may be `logits` itself) with dloss/dlogits."""
    kd, ce, agree = results
    z = logits.float()
    z_teacher = None if teacher_logits is None else teacher_logits.float()
    grad_z: Tensor | None = None
    if agree is not None and z_teacher is not None:
        agree[rows] = (z.argmax(-1) == z_teacher.argmax(-1)).float()
    if z_teacher is not None:
        kd_weights = terms.kd_weights[rows].unsqueeze(-1)
        if divergence is forward_kl_rows:
            kd[rows], grad_z = _forward_kl_block(z, z_teacher, kd_weights, temperature, grad)
        else:
            kd[rows], grad_z = _any_block(divergence, z, z_teacher, kd_weights, temperature, grad)
    ce_weights = terms.ce_weights[rows]
    asked = (ce_weights != 0).nonzero()[:, 0]
    if len(asked):
        whole = len(asked) == len(rows)
        inner = z if whole else z[asked]
        index = terms.targets[rows[asked]].unsqueeze(-1)
        log_q = F.log_softmax(inner, dim=-1)
        ce[rows[asked]] = -log_q.gather(-1, index)[:, 0]
        if grad is not None:
            scale = ce_weights[asked].unsqueeze(-1)
            grad_ce = log_q.exp_().mul_(scale)
            grad_ce.scatter_add_(-1, index, -scale)
            if grad_z is None:
                grad_z = torch.zeros_like(z) if not whole else None
            if grad_z is None:
                grad_z = grad_ce
            else:
                grad_z.index_add_(0, asked, grad_ce)
    if grad is not None and grad_z is not None:
        grad.copy_(grad_z)


def _forward_kl_block(
    z: Tensor, z_teacher: Tensor, weights: Tensor, temperature: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """T^2 KL of each row, and its gradient in closed form: weight * T * (q - p)."""
    if temperature != 1.0:
        z, z_teacher = z / temperature, z_teacher / temperature
    log_q = F.log_softmax(z, dim=-1)
    log_p = F.log_softmax(z_teacher, dim=-1)
    p = log_p.exp()
    # The sum of many tiny terms of both signs: vecdot adds pairwise, where a running sum drifts.
    values = torch.linalg.vecdot(p, log_p.sub_(log_q)) * temperature**2
    if grad is None:
        return values, None
    return values, log_q.exp_().sub_(p).mul_(weights * temperature)


def _any_block(
    divergence: LogDivergence,
    z: Tensor,
    z_teacher: Tensor,
    weights: Tensor,
    temperature: float,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """T^2 D of each row, and its gradient by autograd within the block."""
    if grad is None:
        return per_token(divergence, z, z_teacher, temperature), None
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        values = per_token(divergence, leaf, z_teacher, temperature)
        (grad_z,) = torch.autograd.grad((values * weights[:, 0]).sum(), leaf)
    return values.detach(), grad_z
