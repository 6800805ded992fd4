"""Likelihood matching over spans of text, which two tokenizers cut into tokens of their own.

In: the student's log-likelihood of each token, the teacher's of each span. Out: divergences, and
their gradient for the tokens. Knows nothing of tokenizers, models or output layers.

A span's bytes are said or not said: two outcomes, of probability p^(1/tau) and 1 - p^(1/tau). The
divergence of a span is that of the teacher's two outcomes from the student's, times tau, so that
the gradient keeps its size as tau grows. Source: Minixhofer, Vulic, Ponti 2025, arXiv:2503.20083.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.distill.aligned import AlignedTokens
from potstill.distill.alignment import AlignmentConfig
from potstill.distill.fused import Scores
from potstill.distill.losses import LogDivergence

SURE = -1e-6
"""Log-likelihoods above it are taken for it: what is nearer to 0 is rounding."""

Score = Callable[..., Scores]
"""(what the teacher says, kd weights [N], ce weights [N]) -> `linear_scores` of the batch."""


def two_outcomes(log_p: Tensor, tau: float) -> Tensor:
    """[S] -> [S, 2]: log p^(1/tau) and log (1 - p^(1/tau)), in float64."""
    scaled = log_p.double().clamp(max=SURE) / tau
    return torch.stack([scaled, torch.log(-torch.expm1(scaled))], -1)


def span_divergence(
    log_q: Tensor, log_p: Tensor, divergence: LogDivergence, tau: float = 1.0
) -> Tensor:
    """tau D(teacher || student) of each span: [S] log-likelihoods of both sides -> [S]."""
    return tau * divergence(two_outcomes(log_q, tau), two_outcomes(log_p, tau))


def summed(values: Tensor, said: AlignedTokens) -> Tensor:
    """Values of the student's predictions [N], summed over each span's: [S]."""
    return values.new_zeros(len(said.starts)).index_add_(0, said.owners, values[said.members])


@torch.no_grad()
def span_terms(
    ce: Tensor, said: AlignedTokens, divergence: LogDivergence, tau: float
) -> tuple[Tensor, Tensor]:
    """Each span's divergence [S], and the gradient of their sum with respect to `ce` [N].

    ce: the student's cross-entropy of each prediction. A likelihood that is as good as 1 has the
    gradient of one that is a little less, so that a student that is sure and wrong goes on moving.
    """
    assert said.log_p is not None
    log_q = -summed(ce.double(), said)
    with torch.enable_grad():
        leaf = log_q.clamp(max=SURE).requires_grad_(True)
        values = span_divergence(leaf, said.log_p, divergence, tau)
        (grad,) = torch.autograd.grad(values.sum(), leaf)
    weights = ce.new_zeros(len(ce), dtype=torch.float64)
    weights.index_add_(0, said.members, -grad[said.owners])
    return values.detach().to(ce.dtype), weights.to(ce.dtype)


def aligned_scores(
    score: Score,
    said: AlignedTokens,
    ce_weights: Tensor,
    scale: float,
    divergence: LogDivergence,
    settings: AlignmentConfig,
) -> tuple[Tensor, float, Scores]:
    """The loss of a batch whose teacher has another tokenizer, its unweighted sum over spans, and
    the figures of its tokens.

    scale: weight of a span over their number in the step. A token's share in a span's gradient is
    known once all of its span are, so the output layer is multiplied twice: for the likelihoods,
    then with dloss/dce of each token as the weight of its cross-entropy.
    """
    nothing, total = torch.zeros_like(ce_weights), 0.0
    pulls = nothing
    value = ce_weights.new_zeros(())
    if settings.spans_used:
        touched = nothing.index_fill(0, said.members, 1.0)
        with torch.no_grad():
            ce = score(None, nothing, touched).ce
        values, pulls = span_terms(ce, said, divergence, settings.temperature)
        pulls, total = pulls * scale * torch.is_grad_enabled(), float(values.sum())
        value = values.sum() * scale
    taught = nothing if said.next is None else said.counts
    scores = score(said.next, taught * scale, ce_weights + pulls)
    loss = scores.loss - (scores.ce * pulls).sum() + value
    return loss, total + float((scores.kd * taught).sum()), scores
