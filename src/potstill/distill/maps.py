"""How far a student's attention maps are from the teacher's: a pure function over queries and keys.

In: queries and keys of one sequence, as the softmax of attention sees them (after rotary embedding)
on both sides, and a weight for each query token. Out: a scalar, the weighted sum over query tokens;
the one reducer in `terms.py` divides. Knows nothing of models, layers, batches or values.

A map is the softmax of scale * q k^T over the keys that a query may see; models that do anything
else to the scores (soft-capping, biases, sinks) are beyond it. As in `fused.py` the gradients are
formed in the forward pass, a chunk of queries at a time, so that the maps of a whole sequence never
exist: the memory is that of one chunk. Queries that weigh nothing are never multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import TrainingError

CHUNK_ELEMENTS = {"cpu": 1 << 18}
"""Of a chunk's maps over all heads of one side: what a processor's cache holds, on a GPU more."""
GPU_CHUNK_ELEMENTS = 1 << 24


def attention_kl(
    student_q: Tensor,
    student_k: Tensor,
    teacher_q: Tensor,
    teacher_k: Tensor,
    *,
    student_scale: float,
    teacher_scale: float,
    weights: Tensor,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Sum over query tokens of weights * KL(teacher map || student map), averaged over heads.

    student_q: [H_s, Lq, D_s], student_k: [Hk_s, Lk, D_s]; teacher_q: [H_t, Lq, D_t], teacher_k:
    [Hk_t, Lk, D_t], which take no gradient. Hk divides H: query head h looks at key head
    h // (H / Hk). The scales multiply the products (usually D^-0.5). weights: [Lq].
    mask: [Lq, Lk] bool, which query (row) sees which key; None: causal, and the last query sees
    every key.
    chunk: queries whose maps exist at once (default by memory).
    With H_s = H_t each head is compared with its own; otherwise both sides' maps are averaged over
    their heads first. Returns a scalar, nats; softmaxes are in fp32 or wider. A query that sees
    fewer than two keys gives exactly 0, and so do masked entries; neither has a gradient.
    Errors: TrainingError if the two sides have different numbers of queries or keys.
    Source: MiniLM, Wang et al. 2020, arXiv:2002.10957, section 3.1.
    """
    queries, keys = student_q.shape[1], student_k.shape[1]
    if (queries, keys) != (teacher_q.shape[1], teacher_k.shape[1]):
        raise TrainingError(
            f"The student has {queries} queries over {keys} keys, the teacher "
            f"{teacher_q.shape[1]} over {teacher_k.shape[1]}, so their attention maps cannot be "
            "compared.",
            "Run both on the same tokens.",
        )
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=student_q.device)
        mask = mask.tril(keys - queries)
    if chunk is None:
        elements = CHUNK_ELEMENTS.get(student_q.device.type, GPU_CHUNK_ELEMENTS)
        heads = max(student_q.shape[0], teacher_q.shape[0])
        chunk = max(1, elements // max(1, heads * keys))
    wanted = torch.is_grad_enabled() and (student_q.requires_grad or student_k.requires_grad)
    loss: Tensor = _AttentionKL.apply(  # type: ignore[no-untyped-call]
        student_q,
        student_k,
        teacher_q.detach(),
        teacher_k.detach(),
        (student_scale, teacher_scale),
        weights,
        mask,
        chunk,
        wanted,
    )
    return loss


class _AttentionKL(torch.autograd.Function):
    """The chunked sum with its gradients formed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        student_q: Tensor,
        student_k: Tensor,
        teacher_q: Tensor,
        teacher_k: Tensor,
        scales: tuple[float, float],
        weights: Tensor,
        mask: Tensor,
        chunk: int,
        wanted: bool,
    ) -> Tensor:
        wide = torch.promote_types(student_q.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=student_q.device)
        grad_q = torch.zeros_like(student_q) if wanted else None
        grad_k = torch.zeros_like(student_k, dtype=wide) if wanted else None
        # Where one key is seen both maps are 1 there: no work, and no rounding instead of a 0.
        asked = ((mask.sum(-1) > 1) & (weights != 0)).nonzero()[:, 0]
        for rows in torch.split(asked, chunk):
            if not len(rows):
                continue
            seen = mask[rows]
            reach = int(seen.any(0).nonzero().max()) + 1  # no query of the chunk sees beyond
            seen = seen[:, :reach]
            q, k = student_q[:, rows].detach(), student_k[:, :reach].detach()
            with torch.set_grad_enabled(wanted):
                q, k = q.requires_grad_(wanted), k.requires_grad_(wanted)
                log_q = _log_maps(q, k, scales[0], seen)
                with torch.no_grad():
                    log_p = _log_maps(teacher_q[:, rows], teacher_k[:, :reach], scales[1], seen)
                part = (_map_kl(log_q, log_p, seen) * weights[rows]).sum()
            if grad_q is not None and grad_k is not None:
                chunk_q, chunk_k = torch.autograd.grad(part, (q, k))
                grad_q[:, rows] = chunk_q
                grad_k[:, :reach] += chunk_k
            loss += part.detach()
        ctx.save_for_backward(grad_q, None if grad_k is None else grad_k.to(student_k.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = (
            None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors
        )
        return (grad_q, grad_k, *([None] * 7))


def _log_maps(q: Tensor, k: Tensor, scale: float, seen: Tensor) -> Tensor:
    """[H, n, D], [Hk, m, D], [n, m] bool -> log of the maps [H, n, m], 0 where nothing is seen."""
    heads, rows, width = q.shape
    # The query heads of a key head one below the other, so that no key is copied.
    scores = q.reshape(k.shape[0], -1, width) @ k.transpose(1, 2)
    scores = scores.view(heads, rows, -1)
    scores = scale * scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_maps = F.log_softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
    return log_maps.masked_fill(~seen, 0.0)


def _map_kl(log_q: Tensor, log_p: Tensor, seen: Tensor) -> Tensor:
    """KL(p || q) of each query, averaged over heads: [H_s, n, m], [H_t, n, m] -> [n]."""
    if log_q.shape[0] != log_p.shape[0]:
        log_q, log_p = _mean_over_heads(log_q), _mean_over_heads(log_p)
    p = log_p.exp().masked_fill(~seen, 0.0)
    return (p * (log_p - log_q)).sum(-1).mean(0)


def _mean_over_heads(log_maps: Tensor) -> Tensor:
    """Log of the mean map, [H, n, m] -> [1, n, m], from logarithms and without underflow."""
    return log_maps.logsumexp(0, keepdim=True) - math.log(log_maps.shape[0])
