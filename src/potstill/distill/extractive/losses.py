"""The loss of a model that marks answers: cross-entropy and KL over the places of a window.

In: start and end logits of windows, the places that may be answers, targets. Out: sums over
windows. Pure functions of tensors; know no model.

    L = ce_weight * CE(y, q)  +  kd_weight * T^2 * KL(p_T || q_T)

each the mean of the start's and the end's, over the places of a window: its passage tokens, and
position 0 for "not in here". q_T = softmax(logits / T). Source of the divergence: Hinton, Vinyals,
Dean 2015; of the places: Devlin et al. 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_places(logits: Tensor, places: Tensor, temperature: float = 1.0) -> Tensor:
    """log q_T: [windows, tokens] logits, [windows, tokens] bool -> float32 log-probabilities.

    -inf where nothing may be an answer.
    """
    allowed = logits.float().masked_fill(~places, -torch.inf)
    return F.log_softmax(allowed / temperature, dim=-1)


def ce_sum(starts: Tensor, ends: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """Sum over windows of the cross-entropy in nats. targets: [windows, 2] int64 positions."""
    total = starts.new_zeros((), dtype=torch.float32)
    for logits, target in ((starts, targets[:, 0]), (ends, targets[:, 1])):
        total = total + F.nll_loss(log_places(logits, places), target, reduction="sum")
    return total / 2


def kd_sum(
    starts: Tensor, ends: Tensor, places: Tensor, teacher: Tensor, temperature: float
) -> Tensor:
    """Sum over windows of T^2 KL(teacher || student) in nats.

    teacher: [windows, 2, tokens], its start's and end's probabilities at that temperature, 0
    outside the places.
    """
    total = starts.new_zeros((), dtype=torch.float32)
    for number, logits in enumerate((starts, ends)):
        log_q = log_places(logits, places, temperature).masked_fill(~places, 0.0)
        p = teacher[:, number]
        total = total + (torch.special.xlogy(p, p) - p * log_q).sum()
    return temperature**2 * total / 2
