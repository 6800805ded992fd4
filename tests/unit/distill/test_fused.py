"""The fused output layer against a plain float64 computation, value and gradient."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.distill import losses
from potstill.distill.fused import Scores, Terms
from potstill.distill.fused import linear_scores as scores_of
from potstill.distill.objective import DivergenceName
from potstill.distill.signals import HiddenStates
from potstill.models.output import OutputLayer

N, D, D_T, V, V_S, V_T = 23, 12, 16, 37, 40, 37
NAMES = typing.get_args(DivergenceName)


def _inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Terms]:
    make = torch.Generator().manual_seed(3)
    student = torch.randn(N, D, generator=make, dtype=torch.float64) * scale
    weight = torch.randn(V_S, D, generator=make, dtype=torch.float64)
    teacher = torch.randn(N, D_T, generator=make, dtype=torch.float64) * scale
    teacher_weight = torch.randn(V_T, D_T, generator=make, dtype=torch.float64)
    kd = torch.rand(N, generator=make)
    ce = torch.rand(N, generator=make)
    kd[::4] = 0
    ce[::3] = 0  # row 0 and every twelfth row after it want nothing at all
    return student, weight, teacher, teacher_weight, Terms(torch.arange(N) % V, kd, ce)


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor | None,
    teacher_weight: Tensor | None,
    terms: Terms,
    **settings: Any,
) -> Scores:
    """With plain output layers and the teacher's hidden states."""
    said = None
    if teacher is not None:
        assert teacher_weight is not None
        said = HiddenStates(teacher, OutputLayer(teacher_weight))
    return scores_of(hidden, OutputLayer(weight), said, terms, **settings)


def _plain(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    terms: Terms,
    name: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    student, weight = student.clone().requires_grad_(), weight.clone().requires_grad_()
    logits, teacher_logits = student @ weight[:V].T, teacher @ teacher_weight[:V].T
    kd = losses.per_token(losses.by_name(name), logits, teacher_logits, temperature)
    ce = torch.nn.functional.cross_entropy(logits, terms.targets, reduction="none")
    loss = (kd * terms.kd_weights).sum() + (ce * terms.ce_weights).sum()
    loss.backward()
    assert student.grad is not None
    assert weight.grad is not None
    return loss.detach(), student.grad, weight.grad


def _close(value: Tensor, reference: Tensor, tolerance: float) -> None:
    error = (value.double() - reference).norm() / reference.norm()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_rows", [5, 1000])
def test_value_and_gradients_equal_the_float64_reference(
    name: str, temperature: float, chunk_rows: int
) -> None:
    student, weight, teacher, teacher_weight, terms = _inputs()
    expected = _plain(student, weight, teacher, teacher_weight, terms, name, temperature)
    hidden, matrix = student.float().requires_grad_(), weight.float().requires_grad_()
    scores = linear_scores(
        hidden,
        matrix,
        teacher.float(),
        teacher_weight.float(),
        terms,
        vocabulary=V,
        divergence=losses.by_name(name),
        temperature=temperature,
        chunk_rows=chunk_rows,
    )
    scores.loss.backward()
    assert hidden.grad is not None
    assert matrix.grad is not None
    _close(scores.loss.detach(), expected[0], 1e-5)
    _close(hidden.grad, expected[1], 1e-5)
    _close(matrix.grad, expected[2], 1e-5)


def test_large_logits_do_not_lose_the_value() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs(scale=30.0)
    expected = _plain(student, weight, teacher, teacher_weight, terms, "forward_kl", 1.0)
    scores = linear_scores(
        student.float(),
        weight.float(),
        teacher.float(),
        teacher_weight.float(),
        terms,
        vocabulary=V,
    )
    _close(scores.loss, expected[0], 1e-5)


def test_padded_vocabulary_rows_take_no_part_and_no_gradient() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs()
    matrix = weight.float()
    matrix[V:] = 100.0  # would dominate every softmax
    matrix.requires_grad_()
    scores = linear_scores(
        student.float(), matrix, teacher.float(), teacher_weight.float(), terms, vocabulary=V
    )
    scores.loss.backward()
    assert matrix.grad is not None
    assert matrix.grad[V:].abs().max() == 0
    expected = _plain(student, weight, teacher, teacher_weight, terms, "forward_kl", 1.0)
    _close(scores.loss.detach(), expected[0], 1e-5)


def test_rows_without_a_weight_are_never_multiplied() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs()
    idle = (terms.kd_weights == 0) & (terms.ce_weights == 0)
    assert idle.any()
    hidden = student.float()
    hidden[idle] = float("nan")  # a single multiplication would spread it
    hidden.requires_grad_()
    scores = linear_scores(
        hidden, weight.float(), teacher.float(), teacher_weight.float(), terms, vocabulary=V
    )
    scores.loss.backward()
    assert torch.isfinite(scores.loss)
    assert hidden.grad is not None
    assert hidden.grad[idle].abs().max() == 0


def test_the_teacher_is_not_needed_where_no_token_asks_for_it() -> None:
    student, weight, _, _, terms = _inputs()
    terms = Terms(terms.targets, torch.zeros(N), terms.ce_weights)
    scores = linear_scores(student.float(), weight.float(), None, None, terms, vocabulary=V)
    ce = torch.nn.functional.cross_entropy(student @ weight[:V].T, terms.targets, reduction="none")
    _close(scores.loss, (ce * terms.ce_weights).sum(), 1e-5)
    assert scores.kd.abs().max() == 0


def test_the_gradient_follows_a_factor_on_the_loss() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs()
    gradients = []
    for factor in (1.0, 3.0):
        hidden = student.float().requires_grad_()
        scores = linear_scores(
            hidden, weight.float(), teacher.float(), teacher_weight.float(), terms, vocabulary=V
        )
        (scores.loss * factor).backward()
        assert hidden.grad is not None
        gradients.append(hidden.grad)
    torch.testing.assert_close(gradients[0] * 3, gradients[1])


def test_without_gradients_the_values_are_the_same_and_nothing_is_kept() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs()
    arguments = (weight.float(), teacher.float(), teacher_weight.float(), terms)
    hidden = student.float().requires_grad_()
    learning = linear_scores(hidden, *arguments, vocabulary=V)
    with torch.no_grad():
        measuring = linear_scores(hidden, *arguments, vocabulary=V, details=True)
    assert not measuring.loss.requires_grad
    torch.testing.assert_close(measuring.kd, learning.kd)
    torch.testing.assert_close(measuring.ce, learning.ce)
    same = (student @ weight[:V].T).argmax(-1) == (teacher @ teacher_weight[:V].T).argmax(-1)
    asked = terms.kd_weights != 0
    assert torch.equal(measuring.agreement.bool(), same & asked)


def test_bf16_products_stay_near_the_reference() -> None:
    student, weight, teacher, teacher_weight, terms = _inputs(scale=0.3)
    expected = _plain(student, weight, teacher, teacher_weight, terms, "forward_kl", 1.0)
    hidden, matrix = student.float().requires_grad_(), weight.float().requires_grad_()
    scores = linear_scores(
        hidden,
        matrix,
        teacher.bfloat16(),
        teacher_weight.bfloat16(),
        terms,
        vocabulary=V,
        dtype=torch.bfloat16,
    )
    scores.loss.backward()
    assert hidden.grad is not None
    assert matrix.grad is not None
    assert matrix.grad.dtype == torch.float32
    _close(scores.loss.detach(), expected[0], 2e-2)
    _close(hidden.grad, expected[1], 3e-2)
    _close(matrix.grad, expected[2], 3e-2)
