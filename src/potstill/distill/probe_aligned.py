"""The probe's plain computation where student and teacher have different tokenizers.

In: full logits of one row of each side, its spans. Out: the divergence of each active span.
Everything is computed again, span by span, from the definitions; nothing of the real machinery is
used but the list of common words, and the divergences themselves (`losses.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.distill import losses
from potstill.distill.aligned import AlignedTeacher
from potstill.distill.batches import RowSet
from potstill.distill.objective import Objective
from potstill.models.align import Span

SURE, NO_MASS = -1e-6, -80.0


def plain_spans(
    signal: AlignedTeacher,
    objective: Objective,
    data: RowSet,
    number: int,
    ours: Tensor,
    theirs: Tensor,
) -> Tensor:
    """Of row `number`, each active span's divergence [S].

    ours [L - 1, V], theirs [M - 1, W]: logits of each side's predictions; ours takes gradients.
    """
    assert data.teacher is not None
    divergence = losses.mixture(objective.shares, objective.parameters)
    settings, heat = objective.alignment, objective.temperature
    found = []
    for span in data.teacher.spans[number]:
        if objective.kd_tokens == "answer" and not span.answer:
            continue
        value = ours.new_zeros((), dtype=torch.float64)
        if settings.spans_used:
            tau = settings.temperature
            log_q = _two(ours, data.rows[number].ids, span.first, tau)
            log_p = _two(theirs, data.teacher.rows[number].ids, span.second, tau)
            value = value + tau * divergence(log_q[None], log_p[None])[0]
        q, p = (ours[span.first[0] - 1], theirs[span.second[0] - 1])
        q, p = (q.double() / heat).log_softmax(-1), (p.double() / heat).log_softmax(-1)
        if settings.words_used:
            log_q, log_p = _common(signal, span, q, p)
            value = value + heat**2 * divergence(log_q[None], log_p[None])[0]
        if settings.method == "uld":
            longest = max(len(q), len(p))
            padded = [torch.cat([z.exp(), z.new_zeros(longest - len(z))]) for z in (q, p)]
            gaps = padded[0].sort().values - padded[1].sort().values
            value = value + heat**2 * gaps.abs().sum()
        found.append(value)
    return torch.stack(found) if found else ours.new_zeros(0)


def _two(logits: Tensor, ids: Sequence[int], tokens: tuple[int, int], tau: float) -> Tensor:
    """log p^(1/tau) and log (1 - p^(1/tau)), p of a span's tokens: [2]."""
    each = [logits[at - 1].double().log_softmax(-1)[ids[at]] for at in range(*tokens)]
    said = torch.stack(each).sum().clamp(max=SURE) / tau
    return torch.stack([said, torch.log(-torch.expm1(said))])


def _common(
    signal: AlignedTeacher, span: Span, log_q: Tensor, log_p: Tensor
) -> tuple[Tensor, Tensor]:
    """The teacher's likeliest common words and all others together: [k + 1] of each side."""
    theirs, ours = signal.common.ids(span.leads)
    order = log_p[theirs].argsort(descending=True)[: signal.settings.words]
    sides = []
    for logs, ids in ((log_q, ours[order]), (log_p, theirs[order])):
        others = torch.ones(len(logs), dtype=torch.bool)
        others[ids] = False
        rest = logs[others].logsumexp(0, keepdim=True)
        sides.append(torch.cat([logs[ids], rest]).clamp_min(NO_MASS))
    return sides[0], sides[1]
