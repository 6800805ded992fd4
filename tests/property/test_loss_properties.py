"""What holds for every pair of distributions, whatever the logits."""

from __future__ import annotations

import math
import typing

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from potstill.distill import losses
from potstill.distill.objective import DivergenceName

LOGITS = arrays("float64", (3, 6), elements=st.floats(-30, 30, width=32))
TEMPERATURE = st.floats(0.3, 8.0)
SHARE = st.floats(0.01, 0.99)
NAMES = st.sampled_from(typing.get_args(DivergenceName))


def _rows(name: str, share: float, student: Tensor, teacher: Tensor, t: float) -> Tensor:
    return losses.per_token(losses.by_name(name, share), student, teacher, t)


@settings(max_examples=60, deadline=None)
@given(NAMES, SHARE, LOGITS, LOGITS, TEMPERATURE)
def test_no_divergence_is_negative_or_infinite(
    name: str, share: float, student: object, teacher: object, temperature: float
) -> None:
    values = _rows(name, share, torch.tensor(student), torch.tensor(teacher), temperature)
    assert torch.isfinite(values).all()
    assert float(values.min()) >= -1e-9


@settings(max_examples=40, deadline=None)
@given(NAMES, SHARE, LOGITS, st.floats(-20, 20), TEMPERATURE)
def test_equal_distributions_diverge_by_nothing(
    name: str, share: float, logits: object, shift: float, temperature: float
) -> None:
    student = torch.tensor(logits)
    values = _rows(name, share, student, student + shift, temperature)
    assert float(values.abs().max()) <= 1e-6


@settings(max_examples=40, deadline=None)
@given(SHARE, LOGITS, LOGITS)
def test_jsd_stays_below_the_entropy_of_its_mixture(
    beta: float, student: object, teacher: object
) -> None:
    values = _rows("jsd", beta, torch.tensor(student), torch.tensor(teacher), 1.0)
    bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert float(values.max()) <= bound + 1e-9
    assert bound <= math.log(2) + 1e-12


@settings(max_examples=40, deadline=None)
@given(SHARE, LOGITS, LOGITS)
def test_jsd_swaps_with_its_arguments(beta: float, student: object, teacher: object) -> None:
    one, other = torch.tensor(student), torch.tensor(teacher)
    torch.testing.assert_close(
        _rows("jsd", beta, one, other, 1.0), _rows("jsd", 1 - beta, other, one, 1.0)
    )


@settings(max_examples=40, deadline=None)
@given(LOGITS, LOGITS)
def test_total_variation_is_bounded_by_kl(student: object, teacher: object) -> None:
    """Pinsker's inequality: TV <= sqrt(KL / 2)."""
    one, other = torch.tensor(student), torch.tensor(teacher)
    variation = _rows("total_variation", 0.5, one, other, 1.0)
    kl = _rows("forward_kl", 0.5, one, other, 1.0).clamp_min(0)
    assert bool((variation <= (kl / 2).sqrt() + 1e-7).all())
    assert float(variation.max()) <= 1 + 1e-12
