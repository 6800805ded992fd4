"""Each divergence against its definition in float64, and torch's own kl_div."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.distill import losses

N, V = 7, 11
Loss = Callable[..., Tensor]


def _logits(seed: int, scale: float = 2.0) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return scale * torch.randn(N, V, generator=make, dtype=torch.float64)


def _softmax(logits: Tensor, temperature: float) -> Any:
    z = logits.numpy() / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _kl(p: Any, q: Any) -> Any:
    return (p * (np.log(p) - np.log(q))).sum(-1)


def _adaptive(p: Any, q: Any, head: float) -> Any:
    values = []
    for one_p, one_q in zip(p, q, strict=True):
        order, reached, in_head = np.argsort(-one_p), 0.0, np.zeros(V, bool)
        for word in order:
            in_head[word] = True
            reached += one_p[word]
            if reached >= head:
                break
        gap = np.abs(one_p - one_q)
        share = gap[in_head].sum() / gap.sum()
        values.append(share * _kl(one_p, one_q) + (1 - share) * _kl(one_q, one_p))
    return np.array(values)


REFERENCES: dict[str, tuple[Loss, dict[str, float], Callable[[Any, Any], Any]]] = {
    "forward": (losses.forward_kl, {}, _kl),
    "reverse": (losses.reverse_kl, {}, lambda p, q: _kl(q, p)),
    "jsd": (
        losses.generalised_jsd,
        {"beta": 0.3},
        lambda p, q: 0.3 * _kl(p, 0.3 * p + 0.7 * q) + 0.7 * _kl(q, 0.3 * p + 0.7 * q),
    ),
    "skew_forward": (
        losses.skew_forward_kl,
        {"alpha": 0.2},
        lambda p, q: _kl(p, 0.2 * p + 0.8 * q),
    ),
    "skew_reverse": (
        losses.skew_reverse_kl,
        {"alpha": 0.2},
        lambda p, q: _kl(q, 0.2 * q + 0.8 * p),
    ),
    "adaptive": (losses.adaptive_kl, {"head": 0.5}, lambda p, q: _adaptive(p, q, 0.5)),
    "variation": (losses.total_variation, {}, lambda p, q: 0.5 * np.abs(p - q).sum(-1)),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_value_is_t_squared_times_the_definition(name: str, temperature: float) -> None:
    function, parameters, reference = REFERENCES[name]
    student, teacher = _logits(1), _logits(2)
    weights = torch.rand(N, dtype=torch.float64)
    value = function(student, teacher, temperature=temperature, weights=weights, **parameters)
    per_token = reference(_softmax(teacher, temperature), _softmax(student, temperature))
    assert float(value) == pytest.approx(temperature**2 * (per_token * weights.numpy()).sum())
    unweighted = function(student, teacher, temperature=temperature, **parameters)
    assert float(unweighted) == pytest.approx(temperature**2 * per_token.sum())


def test_forward_kl_equals_torch_kl_div() -> None:
    student, teacher = _logits(1), _logits(2)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(student, -1),
        torch.log_softmax(teacher, -1),
        reduction="sum",
        log_target=True,
    )
    torch.testing.assert_close(losses.forward_kl(student, teacher), expected)


def test_the_gradient_carries_t_squared_too() -> None:
    student, teacher, temperature = _logits(1).requires_grad_(), _logits(2), 2.5
    losses.forward_kl(student, teacher, temperature=temperature).backward()
    q = torch.softmax(student.detach() / temperature, -1)
    p = torch.softmax(teacher / temperature, -1)
    # d/dz of T^2 KL(p || q(z / T)) = T^2 (q - p) / T
    torch.testing.assert_close(student.grad, temperature * (q - p))


@pytest.mark.parametrize("name", sorted(set(REFERENCES) - {"adaptive"}))
def test_gradients_agree_with_finite_differences(name: str) -> None:
    function, parameters, _ = REFERENCES[name]
    student, teacher = _logits(1).requires_grad_(), _logits(2)
    assert torch.autograd.gradcheck(
        lambda logits: function(logits, teacher, temperature=1.5, **parameters), (student,)
    )


def test_the_share_of_adaptive_kl_takes_no_gradient() -> None:
    student, teacher = _logits(1).requires_grad_(), _logits(2)
    losses.adaptive_kl(student, teacher).backward()
    p, q = _softmax(teacher, 1), _softmax(student.detach(), 1)
    forward, reverse = _kl(p, q), _kl(q, p)
    share = torch.from_numpy((_adaptive(p, q, 0.5) - reverse) / (forward - reverse))
    again = _logits(1).requires_grad_()
    (
        losses.forward_kl(again, teacher, weights=share)
        + losses.reverse_kl(again, teacher, weights=1 - share)
    ).backward()
    torch.testing.assert_close(student.grad, again.grad)


def test_cross_entropy_is_the_surprise_at_what_really_follows() -> None:
    student, targets = _logits(1), torch.arange(N) % V
    surprise = -np.log(_softmax(student, 1)[np.arange(N), targets.numpy()])
    assert float(losses.cross_entropy(student, targets)) == pytest.approx(surprise.sum())
    weights = torch.zeros(N, dtype=torch.float64)
    weights[3] = 2.0
    weighted = losses.cross_entropy(student, targets, weights=weights)
    assert float(weighted) == pytest.approx(2 * surprise[3])


def test_names_lead_to_the_functions_and_take_their_default_parameters() -> None:
    student, teacher = _logits(1), _logits(2)
    pairs: list[tuple[str, float | None, Tensor]] = [
        ("forward_kl", None, losses.forward_kl(student, teacher)),
        ("reverse_kl", None, losses.reverse_kl(student, teacher)),
        ("jsd", None, losses.generalised_jsd(student, teacher, beta=0.5)),
        ("jsd", 0.2, losses.generalised_jsd(student, teacher, beta=0.2)),
        ("skew_forward_kl", None, losses.skew_forward_kl(student, teacher, alpha=0.1)),
        ("skew_reverse_kl", 0.4, losses.skew_reverse_kl(student, teacher, alpha=0.4)),
        ("adaptive_kl", None, losses.adaptive_kl(student, teacher, head=0.5)),
        ("total_variation", None, losses.total_variation(student, teacher)),
    ]
    for name, parameter, expected in pairs:
        divergence = losses.by_name(name, parameter)
        value = losses.per_token(divergence, student, teacher, 1.0).sum()
        torch.testing.assert_close(value, expected)


def test_jsd_tends_to_forward_and_reverse_kl_at_its_ends() -> None:
    student, teacher = _logits(1), _logits(2)
    near_zero = losses.generalised_jsd(student, teacher, beta=1e-6) / 1e-6
    near_one = losses.generalised_jsd(student, teacher, beta=1 - 1e-6) / 1e-6
    assert float(near_zero) == pytest.approx(float(losses.forward_kl(student, teacher)), rel=1e-4)
    assert float(near_one) == pytest.approx(float(losses.reverse_kl(student, teacher)), rel=1e-4)


def test_skew_divergences_without_skew_are_the_plain_ones() -> None:
    student, teacher = _logits(1), _logits(2)
    torch.testing.assert_close(
        losses.skew_forward_kl(student, teacher, alpha=0.0), losses.forward_kl(student, teacher)
    )
    torch.testing.assert_close(
        losses.skew_reverse_kl(student, teacher, alpha=0.0), losses.reverse_kl(student, teacher)
    )


def test_opposite_certainties_reach_the_upper_bounds() -> None:
    student = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 60.0]], dtype=torch.float64)
    assert float(losses.generalised_jsd(student, teacher)) == pytest.approx(math.log(2))
    assert float(losses.total_variation(student, teacher)) == pytest.approx(1.0)
    assert float(losses.skew_forward_kl(student, teacher)) == pytest.approx(-math.log(0.1))
