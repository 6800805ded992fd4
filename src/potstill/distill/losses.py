"""Divergences between teacher and student, and cross-entropy: pure functions over logits.

In: logits of N tokens over the same V words. Out: a scalar, the (weighted) sum over tokens; the
one reducer in `terms.py` divides. Knows nothing of masks, batches, chunks or models.

Everywhere p is the teacher's distribution and q the student's, both softmaxes of logits / T.
Values carry the factor T^2, and so does the gradient, which keeps its size when T changes
(Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2). Logits must be finite: a caller with a
padded vocabulary cuts the padding off first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.plugins import PREFIX
from potstill.distill.divergence_plugins import plugin_rows
from potstill.distill.objective import DIVERGENCE_PARAMETERS

LogDivergence = Callable[[Tensor, Tensor], Tensor]
"""(log q [N, V], log p [N, V]) -> divergence of each token [N], without T^2."""


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 KL(p || q) = T^2 sum_v p (log p - log q).

    student_logits, teacher_logits: [N, V]. weights: [N] or None (all one). Returns a scalar, nats.
    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """
    values = per_token(forward_kl_rows, student_logits, teacher_logits, temperature)
    return weighted_sum(values, weights)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 KL(q || p) = T^2 sum_v q (log q - log p).

    student_logits, teacher_logits: [N, V]. weights: [N] or None. Returns a scalar, nats.
    Source: MiniLLM, Gu et al. 2024, arXiv:2306.08543.
    """
    values = per_token(reverse_kl_rows, student_logits, teacher_logits, temperature)
    return weighted_sum(values, weights)


def generalised_jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 [beta KL(p || m) + (1 - beta) KL(q || m)], m = beta p + (1 - beta) q.

    student_logits, teacher_logits: [N, V]. 0 < beta < 1. weights: [N] or None. A scalar, nats;
    per token between 0 and the entropy of (beta, 1 - beta), at most log 2. Divided by beta it
    tends to the forward KL as beta -> 0, divided by 1 - beta to the reverse KL as beta -> 1.
    Source: GKD, Agarwal et al. 2024, arXiv:2306.13649, equation 1.
    """
    rows = partial(jsd_rows, beta=beta)
    return weighted_sum(per_token(rows, student_logits, teacher_logits, temperature), weights)


def skew_forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 KL(p || alpha p + (1 - alpha) q).

    student_logits, teacher_logits: [N, V]. 0 <= alpha < 1; 0 is the forward KL. A scalar, nats;
    per token at most -log alpha. Source: DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    rows = partial(skew_forward_kl_rows, alpha=alpha)
    return weighted_sum(per_token(rows, student_logits, teacher_logits, temperature), weights)


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 KL(q || alpha q + (1 - alpha) p).

    student_logits, teacher_logits: [N, V]. 0 <= alpha < 1; 0 is the reverse KL. A scalar, nats;
    per token at most -log alpha. Source: DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    rows = partial(skew_reverse_kl_rows, alpha=alpha)
    return weighted_sum(per_token(rows, student_logits, teacher_logits, temperature), weights)


def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    head: float = 0.5,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 [g KL(p || q) + (1 - g) KL(q || p)].

    g is the share of the total gap sum |p - q| that lies in the teacher's head: its most likely
    words, up to the one with which their probability reaches `head`. g takes no gradient.
    student_logits, teacher_logits: [N, V]. weights: [N] or None. A scalar, nats.
    Source: AKL, Wu et al. 2025, arXiv:2404.02657, section 4.
    """
    rows = partial(adaptive_kl_rows, head=head)
    return weighted_sum(per_token(rows, student_logits, teacher_logits, temperature), weights)


def total_variation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of T^2 / 2 sum_v |p - q|; per token between 0 and T^2.

    student_logits, teacher_logits: [N, V]. weights: [N] or None. Returns a scalar.
    Source: f-DISTILL, Wen et al. 2023, arXiv:2307.15190.
    """
    values = per_token(total_variation_rows, student_logits, teacher_logits, temperature)
    return weighted_sum(values, weights)


def cross_entropy(
    student_logits: Tensor, targets: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Sum over tokens of -log q[target], at temperature 1.

    student_logits: [N, V]; targets: [N] int64, each the token that really follows; no index is
    ignored, masking is done by `weights` [N]. Returns a scalar, nats.
    """
    return weighted_sum(F.cross_entropy(student_logits, targets, reduction="none"), weights)


def by_name(name: str, parameter: float | None = None) -> LogDivergence:
    """The per-token divergence of that name; `parameter` None takes the documented default.

    plugin:NAME is that of a plug-in, tried before it is given. Errors: PluginError.
    """
    if name.startswith(PREFIX):
        return plugin_rows(name)
    value = DIVERGENCE_PARAMETERS.get(name, 0.0) if parameter is None else parameter
    known: dict[str, LogDivergence] = {
        "forward_kl": forward_kl_rows,
        "reverse_kl": reverse_kl_rows,
        "jsd": partial(jsd_rows, beta=value),
        "skew_forward_kl": partial(skew_forward_kl_rows, alpha=value),
        "skew_reverse_kl": partial(skew_reverse_kl_rows, alpha=value),
        "adaptive_kl": partial(adaptive_kl_rows, head=value),
        "total_variation": total_variation_rows,
    }
    return known[name]


def mixture(shares: Mapping[str, float], parameters: Mapping[str, float]) -> LogDivergence:
    """The weighted sum of several per-token divergences; a single one of share 1 as it is."""
    parts = [(share, by_name(name, parameters.get(name))) for name, share in shares.items()]
    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]

    def rows(log_q: Tensor, log_p: Tensor) -> Tensor:
        return torch.stack([share * divergence(log_q, log_p) for share, divergence in parts]).sum(0)

    return rows


def per_token(
    divergence: LogDivergence, student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """T^2 D(p || q) of each token: [N, V], [N, V] -> [N]. The one place that knows T."""
    if temperature != 1.0:
        student_logits, teacher_logits = student_logits / temperature, teacher_logits / temperature
    log_q = F.log_softmax(student_logits, dim=-1)
    log_p = F.log_softmax(teacher_logits, dim=-1)
    return divergence(log_q, log_p) * temperature**2


def forward_kl_rows(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) of each row: [N, V], [N, V] -> [N]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl_rows(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) of each row: [N, V], [N, V] -> [N]."""
    return forward_kl_rows(log_p, log_q)


def jsd_rows(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of each row: [N, V], [N, V] -> [N]."""
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * forward_kl_rows(log_m, log_p) + (1 - beta) * forward_kl_rows(log_m, log_q)


def skew_forward_kl_rows(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) of each row: [N, V], [N, V] -> [N]."""
    return forward_kl_rows(_log_mixture(log_p, log_q, alpha), log_p)


def skew_reverse_kl_rows(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p) of each row: [N, V], [N, V] -> [N]."""
    return forward_kl_rows(_log_mixture(log_q, log_p, alpha), log_q)


def adaptive_kl_rows(log_q: Tensor, log_p: Tensor, head: float) -> Tensor:
    """Adaptive KL of each row: [N, V], [N, V] -> [N]."""
    with torch.no_grad():
        sorted_p, order = log_p.exp().sort(dim=-1, descending=True)
        # A word is in the head if the words before it have not reached the share yet.
        in_head = (sorted_p.cumsum(-1) - sorted_p) < head
        gaps = (sorted_p - log_q.exp().gather(-1, order)).abs()
        head_gap, gap = (gaps * in_head).sum(-1), gaps.sum(-1)
        share = torch.where(gap > 0, head_gap / gap.clamp_min(torch.finfo(gap.dtype).tiny), 0.5)
    return share * forward_kl_rows(log_q, log_p) + (1 - share) * reverse_kl_rows(log_q, log_p)


def total_variation_rows(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Total variation distance of each row: [N, V], [N, V] -> [N]."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def _log_mixture(log_first: Tensor, log_second: Tensor, share: float) -> Tensor:
    """log(share * first + (1 - share) * second), from logarithms and without underflow."""
    if share == 0:
        return log_second
    shift = torch.tensor([share, 1 - share], dtype=torch.float64).log().tolist()
    return torch.logaddexp(log_first + shift[0], log_second + shift[1])


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over tokens of weights * values: [N], [N] or None (all one) -> a scalar."""
    return values.sum() if weights is None else (values * weights).sum()
