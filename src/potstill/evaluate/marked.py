"""How near a student that marks answers is to its teacher, on one example.

In: both distributions over the places of a passage. Out: `MarkScores`, which `metrics.py` averages.
Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MarkScores:
    """kl: KL(teacher || student) in nats, the mean of the start's and the end's. same: 1 where
    both give the same span, or none. rows: 0 where the teacher says nothing, else 1."""

    kl: float = 0.0
    same: float = 0.0
    rows: float = 0.0


def kl_of_places(teacher: Tensor, log_q: Tensor) -> float:
    """teacher: [2, places] probabilities; log_q: [2, places] log-probabilities of the student.

    A place that the student cannot mark, such as the end of a longer span than it may give, counts
    as one of probability e^-30.
    """
    p, q = teacher.double(), log_q.double().clamp(min=-30.0)
    return float((torch.special.xlogy(p, p) - p * q).sum() / 2)
