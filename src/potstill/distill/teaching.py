"""Divergence of a block of logits from what the teacher says, with its gradient.

In: the student's logits [n, V], the teacher's side in one of its forms (logits, top k and tail,
samples), weights. Out: each row's T^2 D [n], and d(sum of weight * value)/dlogits [n, V] if weights
are given. Knows nothing of output layers, chunks or masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.distill.losses import LogDivergence, forward_kl_rows, reverse_kl_rows
from potstill.distill.sparse import Samples, TopK

LEAST_LOG = -80.0
"""Stands for log 0 of a tail without mass: its probability is 0 in fp32, its logarithm a number."""

Block = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Look:
    """How the two distributions of each row look, all [n]: at the temperature, in nats."""

    agreement: Tensor
    """1 where both name the same likeliest word."""
    student_entropy: Tensor
    teacher_entropy: Tensor


def dense_block(
    logits: Tensor,
    teacher_logits: Tensor,
    divergence: LogDivergence,
    temperature: float,
    weights: Tensor | None,
    look: bool = False,
) -> tuple[Tensor, Tensor | None, Look | None]:
    """Of the teacher's full distribution. logits, teacher_logits: [n, V]; weights: [n, 1]."""
    if temperature != 1.0:
        logits, teacher_logits = logits / temperature, teacher_logits / temperature
    if divergence is forward_kl_rows:
        return _forward_kl(logits, teacher_logits, temperature, weights, look)
    if divergence is reverse_kl_rows:
        return _reverse_kl(logits, teacher_logits, temperature, weights, look)
    log_p = F.log_softmax(teacher_logits, dim=-1)
    seen = _look(F.log_softmax(logits, dim=-1), log_p) if look else None
    if weights is None:
        return divergence(F.log_softmax(logits, dim=-1), log_p) * temperature**2, None, seen
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        values = divergence(F.log_softmax(leaf, dim=-1), log_p) * temperature**2
        (grad,) = torch.autograd.grad((values * weights[:, 0]).sum(), leaf)
    return values.detach(), grad.div_(temperature), seen


def _forward_kl(
    logits: Tensor, teacher_logits: Tensor, temperature: float, weights: Tensor | None, look: bool
) -> tuple[Tensor, Tensor | None, Look | None]:
    """The gradient in closed form: weight * T * (q - p). One exponential a word and side."""
    q, p = torch.softmax(logits, dim=-1), torch.softmax(teacher_logits, dim=-1)
    top_p, best = p.max(-1, keepdim=True)
    top_q = q.amax(-1, keepdim=True)
    # The likeliest word gives log sum exp without loss: its logit minus the logarithm of its share.
    log_q = logits - (logits.amax(-1, keepdim=True) - top_q.log())
    log_p = teacher_logits - (teacher_logits.gather(-1, best) - top_p.log())
    seen = None
    if look:
        seen = Look(
            (q.gather(-1, best) >= top_q)[:, 0].float(),
            -torch.linalg.vecdot(q, log_q),
            -torch.linalg.vecdot(p, log_p),
        )
    # The sum of many tiny terms of both signs: vecdot adds pairwise, where a running sum drifts.
    values = torch.linalg.vecdot(p, log_p.sub_(log_q)) * temperature**2
    return values, None if weights is None else q.sub_(p).mul_(weights * temperature), seen


def _reverse_kl(
    logits: Tensor, teacher_logits: Tensor, temperature: float, weights: Tensor | None, look: bool
) -> tuple[Tensor, Tensor | None, Look | None]:
    """The gradient in closed form: weight * T * q * (r - mean of r under q), r = log q - log p.

    r is taken relative to the student's likeliest word, where it is then exactly 0: for a student
    that is sure, the difference to the mean would otherwise be what is left of large numbers.
    """
    log_q, log_p = F.log_softmax(logits, dim=-1), F.log_softmax(teacher_logits, dim=-1)
    best = logits.argmax(-1, keepdim=True)
    seen = _look(log_q, log_p) if look else None
    offset = (log_q.gather(-1, best) - log_p.gather(-1, best))[:, 0]
    ratios = logits - logits.gather(-1, best)
    ratios -= teacher_logits - teacher_logits.gather(-1, best)
    q = log_q.exp_()
    mean = torch.linalg.vecdot(q, ratios)
    values = (mean + offset) * temperature**2
    if weights is None:
        return values, None, seen
    return values, ratios.sub_(mean.unsqueeze(-1)).mul_(q).mul_(weights * temperature), seen


def _look(log_q: Tensor, log_p: Tensor) -> Look:
    q, p = log_q.exp(), log_p.exp()
    best = p.argmax(-1, keepdim=True)
    same = (q.gather(-1, best)[:, 0] >= q.amax(-1)).float()
    return Look(same, -torch.linalg.vecdot(q, log_q), -torch.linalg.vecdot(p, log_p))


def top_k_block(
    logits: Tensor,
    teacher: TopK,
    divergence: LogDivergence,
    temperature: float,
    weights: Tensor | None,
) -> Block:
    """Between the k + 1 outcomes "each of these words" and "any other word".

    The student's other words are added up exactly, so the value is a divergence of two real
    distributions: never negative, never above that of the full ones (but for adaptive_kl, which
    weighs single words), and the other words keep their gradient. logits: [n, V]; weights: [n, 1].
    """
    z = logits / temperature if temperature != 1.0 else logits
    unused = teacher.ids == teacher.ids[:, :1]
    unused[:, 0] = teacher.log_p[:, 0] == -torch.inf  # the likeliest: no word is told apart
    rest = z.scatter(-1, teacher.ids, -torch.inf)
    rest_sum = rest.logsumexp(-1, keepdim=True)
    log_p = torch.cat([teacher.log_p, teacher.tail.unsqueeze(-1)], -1).clamp_min(LEAST_LOG)
    with torch.set_grad_enabled(weights is not None):
        words = z.gather(-1, teacher.ids).masked_fill_(unused, -torch.inf)
        outcomes = torch.cat([words, rest_sum], -1).detach()
        outcomes.requires_grad_(weights is not None)
        log_q = F.log_softmax(outcomes, dim=-1).clamp_min(LEAST_LOG)  # no word may be left
        values = divergence(log_q, log_p) * temperature**2
        if weights is None:
            return values, None
        (grad,) = torch.autograd.grad((values * weights[:, 0]).sum(), outcomes)
    grad = grad / temperature
    full = rest.sub_(rest_sum).exp_().mul_(grad[:, -1:])
    full.scatter_(-1, teacher.ids, 0.0)
    return values.detach(), full.scatter_add_(-1, teacher.ids, grad[:, :-1])


def ranked_block(
    logits: Tensor, teacher_logits: Tensor, temperature: float, weights: Tensor | None
) -> Block:
    """T^2 times the L1 distance of the two distributions' probabilities, each sorted.

    The shorter vocabulary is padded with zeros. Source: Universal Logit Distillation, Boizard et
    al. 2024, arXiv:2402.12030. logits: [n, V]; teacher_logits: [n, W]; weights: [n, 1].
    """
    q, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True)
    p = torch.softmax(teacher_logits / temperature, dim=-1).sort(dim=-1, descending=True).values
    both = min(q.shape[1], p.shape[1])
    gaps = q.clone()
    gaps[:, :both] -= p[:, :both]
    values = (gaps.abs().sum(-1) + p[:, both:].sum(-1)) * temperature**2
    if weights is None:
        return values, None
    pull = gaps.sign_()
    grad = q * (pull - torch.linalg.vecdot(q, pull).unsqueeze(-1)) * (weights * temperature)
    return values, torch.empty_like(grad).scatter_(-1, order, grad)


def samples_block(
    logits: Tensor, teacher: Samples, temperature: float, weights: Tensor | None
) -> Block:
    """Forward KL to an unbiased estimate of the teacher's distribution; so are value and gradient.

    Value: T^2 sum_j w_j (log p_j - log q_j); gradient: T (q sum_j w_j - w). A single token's value
    may be negative; its expectation is the KL. Source: Anshumann et al. 2025, arXiv:2503.16870.
    logits: [n, V]; weights: [n, 1].
    """
    log_q = F.log_softmax(logits / temperature if temperature != 1.0 else logits, dim=-1)
    drawn = teacher.weights
    values = (drawn * (teacher.log_p - log_q.gather(-1, teacher.ids))).sum(-1) * temperature**2
    if weights is None:
        return values, None
    grad = log_q.exp_().mul_(drawn.sum(-1, keepdim=True))
    return values, grad.scatter_add_(-1, teacher.ids, -drawn).mul_(weights * temperature)
