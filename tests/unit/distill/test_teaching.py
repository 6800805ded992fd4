"""Blocks of divergence in value and gradient against float64 computations of their own."""

from __future__ import annotations

import math
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from potstill.distill import losses
from potstill.distill.objective import DivergenceName
from potstill.distill.sparse import Samples, TopK, sample, top_k, uniforms
from potstill.distill.teaching import dense_block, samples_block, top_k_block

N, V, K = 11, 29, 5
NAMES = typing.get_args(DivergenceName)
TEMPERATURES = [1.0, 2.5]


def pair(scale: float = 2.0, seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits [N, V] and weights [N, 1], in float64."""
    make = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(N, V, generator=make, dtype=torch.float64)
    teacher = scale * torch.randn(N, V, generator=make, dtype=torch.float64)
    weights = torch.rand(N, 1, generator=make, dtype=torch.float64)
    weights[::3] = 0
    return student, teacher, weights


def written_out(name: str, q: Tensor, p: Tensor) -> Tensor:
    """The divergence of each row from its definition, with the documented default parameters."""

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (torch.xlogy(one, one) - torch.xlogy(one, other)).sum(-1)

    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        m = 0.5 * (p + q)
        return 0.5 * kl(p, m) + 0.5 * kl(q, m)
    if name == "skew_forward_kl":
        return kl(p, 0.1 * p + 0.9 * q)
    if name == "skew_reverse_kl":
        return kl(q, 0.1 * q + 0.9 * p)
    if name == "total_variation":
        return 0.5 * (p - q).abs().sum(-1)
    shares = []
    for of_q, of_p in zip(q.detach(), p, strict=True):
        head, mass = 0.0, 0.0
        for word in of_p.argsort(descending=True).tolist():
            if mass >= 0.5:
                break
            head += float((of_p[word] - of_q[word]).abs())
            mass += float(of_p[word])
        shares.append(head / max(1e-300, float((of_p - of_q).abs().sum())))
    share = torch.tensor(shares, dtype=torch.float64)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def with_gradient(values: Tensor, weights: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad((values * weights[:, 0]).sum(), logits)
    return values.detach(), gradient


def dense(
    name: str, student: Tensor, teacher: Tensor, temperature: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    q, p = torch.softmax(leaf / temperature, -1), torch.softmax(teacher / temperature, -1)
    return with_gradient(written_out(name, q, p) * temperature**2, weights, leaf)


def coarse(
    name: str, student: Tensor, ids: Tensor, p: Tensor, temperature: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the outcomes "each of these words" and "any other word"; p: [N, k]."""
    leaf = student.clone().requires_grad_()
    q = torch.softmax(leaf / temperature, -1)
    named = q.gather(-1, ids)
    rest = torch.zeros_like(q).scatter(-1, ids, 1.0)
    q = torch.cat([named, ((1 - rest) * q).sum(-1, keepdim=True)], -1)
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    return with_gradient(written_out(name, q, p) * temperature**2, weights, leaf)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_dense_block_is_the_divergence_as_it_is_written(name: str, temperature: float) -> None:
    student, teacher, weights = pair()
    value, gradient = dense(name, student, teacher, temperature, weights)
    arguments = (student.float(), teacher.float(), losses.by_name(name), temperature)
    found, slope, look = dense_block(*arguments, weights.float())
    assert slope is not None
    assert look is None
    near(found, value)
    near(slope, gradient)
    assert slope[::3].abs().max() == 0
    measured, none, _ = dense_block(*arguments, None)
    assert none is None
    torch.testing.assert_close(measured, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_sums_to_nothing_in_each_row(name: str, temperature: float) -> None:
    student, teacher, weights = (one.float() for one in pair())
    top = top_k(teacher.clone(), K, temperature)
    divergence = losses.by_name(name)
    _, gradient, _ = dense_block(student, teacher, divergence, temperature, weights)
    _, truncated = top_k_block(student, top, divergence, temperature, weights)
    for one in (gradient, truncated):  # softmax does not see a shift of all logits
        assert one is not None
        assert float(one.sum(-1).abs().max()) < 1e-5 * float(one.abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_top_k_is_the_divergence_of_k_words_and_the_rest(name: str, temperature: float) -> None:
    student, teacher, weights = pair()
    p, ids = torch.softmax(teacher / temperature, -1).topk(K, -1)
    value, gradient = coarse(name, student, ids, p, temperature, weights)
    top = TopK(ids, p.log().float(), torch.log1p(-p.sum(-1)).float())
    arguments = (student.float(), top, losses.by_name(name), temperature)
    found, slope = top_k_block(*arguments, weights.float())
    assert slope is not None
    near(found, value)
    near(slope, gradient, 2e-5)
    measured, none = top_k_block(*arguments, None)
    assert none is None
    torch.testing.assert_close(measured, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_words_kept_are_the_dense_divergence(name: str, temperature: float) -> None:
    student, teacher, weights = pair()
    value, gradient = dense(name, student, teacher, temperature, weights)
    top = top_k(teacher.float(), V, temperature)
    assert (top.tail == -torch.inf).all()
    found, slope = top_k_block(
        student.float(), top, losses.by_name(name), temperature, weights.float()
    )
    assert slope is not None
    assert torch.isfinite(found).all()
    assert torch.isfinite(slope).all()
    near(found, value)
    near(slope, gradient, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_without_a_tail_leaves_the_students_tail_a_gradient(name: str) -> None:
    student, teacher, weights = pair()
    top = top_k(teacher.float(), K, 1.0)
    log_p = top.log_p - top.log_p.logsumexp(-1, keepdim=True)
    none_left = TopK(top.ids, log_p, torch.full((N,), -torch.inf))
    found, slope = top_k_block(
        student.float(), none_left, losses.by_name(name), 1.0, weights.float()
    )
    assert slope is not None
    assert torch.isfinite(found).all()
    assert torch.isfinite(slope).all()
    assert float(found.min()) > 0
    rest = torch.ones(N, V, dtype=torch.bool).scatter(-1, top.ids, False)
    asked = weights[:, 0] != 0
    pushed = (slope * rest).sum(-1)[asked]  # words that the teacher never says go down
    assert float(pushed.min()) > 0


def test_a_student_without_a_tail_stays_finite() -> None:
    """The k words have all its mass, and the teacher says something else too."""
    logits = torch.full((1, V), -1e4)
    logits[0, :K] = 0
    ids = torch.arange(K).unsqueeze(0)
    log_p = torch.full((1, K), math.log(0.9 / K))
    top = TopK(ids, log_p, torch.tensor([math.log(0.1)]))
    for name in NAMES:
        found, slope = top_k_block(logits, top, losses.by_name(name), 1.0, torch.ones(1, 1))
        assert slope is not None
        assert torch.isfinite(found).all(), name
        assert torch.isfinite(slope).all(), name


LOGITS = arrays("float32", (3, 8), elements=st.floats(-15, 15, width=32))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), LOGITS, LOGITS, st.integers(1, 8), st.sampled_from(TEMPERATURES))
def test_a_coarse_divergence_is_never_negative_and_never_above_the_dense_one(
    name: str, student: object, teacher: object, count: int, temperature: float
) -> None:
    logits, truth = torch.tensor(student), torch.tensor(teacher)
    if name == "adaptive_kl":
        # Its share g depends on the words, so it is not an f-divergence: only >= 0 is promised.
        bound = torch.full((3,), torch.inf, dtype=torch.float64)
    else:
        double = (logits.double(), truth.double())
        bound = losses.per_token(losses.by_name(name), *double, temperature)
    top = top_k(truth.clone(), count, temperature)
    found, _ = top_k_block(logits, top, losses.by_name(name), temperature, None)
    # fp32: logarithms of up to 60 are rounded by 4e-6, and T^2 multiplies it.
    slack = 2e-5 * temperature**2
    assert torch.isfinite(found).all()
    assert float(found.min()) >= -slack
    assert bool((found.double() <= bound * (1 + 1e-5) + slack).all())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_samples_are_the_cross_entropy_to_what_was_drawn(temperature: float) -> None:
    student, teacher, weights = pair()
    drawn = sample(teacher.float(), temperature, uniforms(7, torch.arange(N), 6))
    leaf = student.clone().requires_grad_()
    log_q = torch.log_softmax(leaf / temperature, -1)
    log_p = torch.log_softmax(teacher / temperature, -1)
    total = torch.zeros(N, dtype=torch.float64)
    for row in range(N):
        for word, share in zip(drawn.ids[row].tolist(), drawn.weights[row].tolist(), strict=True):
            total[row] = total[row] + share * (log_p[row, word] - log_q[row, word])
    value, gradient = with_gradient(total * temperature**2, weights, leaf)
    found, slope = samples_block(student.float(), drawn, temperature, weights.float())
    assert slope is not None
    near(found, value)
    near(slope, gradient)
    measured, none = samples_block(student.float(), drawn, temperature, None)
    assert none is None
    assert torch.equal(measured, found)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_mean_of_many_draws_is_the_dense_divergence(temperature: float) -> None:
    student, teacher, weights = pair()
    value, gradient = dense("forward_kl", student, teacher, temperature, weights)
    draws, count = 10_000, 4
    many = [one.float().repeat(draws, 1) for one in (student, teacher, weights)]
    drawn = sample(many[1], temperature, uniforms(3, torch.arange(N * draws), count))
    found, slope = samples_block(many[0], drawn, temperature, many[2])
    assert slope is not None
    values, slopes = found.double().view(draws, N), slope.double().view(draws, N, V)
    assert bool(((values.mean(0) - value).abs() <= 5 * values.std(0) / math.sqrt(draws)).all())
    # Stratified draws spread no more than independent ones, whose variance is known.
    p = torch.softmax(teacher / temperature, -1)
    variance = (weights * temperature) ** 2 * p * (1 - p) / (count * draws)
    apart = slopes.mean(0) - gradient
    assert float(apart.norm()) <= 1.5 * float(variance.sum().sqrt())


def test_places_that_were_not_used_have_no_part() -> None:
    student, teacher, weights = (one.float() for one in pair())
    drawn = sample(teacher, 1.0, uniforms(1, torch.arange(N), 6))
    spare = drawn.weights == 0
    assert spare.any()
    ids = drawn.ids.clone()
    wide = Samples(
        torch.cat([ids, ids[:, :1]], 1),
        torch.cat([drawn.weights, torch.zeros(N, 1)], 1),
        torch.cat([drawn.log_p, torch.zeros(N, 1)], 1),
    )
    one, other = (samples_block(student, each, 1.0, weights) for each in (drawn, wide))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("learns", [True, False])
def test_a_look_tells_entropies_and_agreement(name: str, temperature: float, learns: bool) -> None:
    student, teacher, weights = pair()
    teacher[:4] = student[:4] + 0.1 * teacher[:4]  # some rows agree
    _, _, look = dense_block(
        student.float(),
        teacher.float(),
        losses.by_name(name),
        temperature,
        weights.float() if learns else None,
        look=True,
    )
    assert look is not None
    for entropy, logits in ((look.student_entropy, student), (look.teacher_entropy, teacher)):
        p = torch.softmax(logits / temperature, -1)
        near(entropy, -torch.xlogy(p, p).sum(-1))
    same = student.argmax(-1) == teacher.argmax(-1)
    assert 0 < same.sum() < N
    assert torch.equal(look.agreement, same.float())


def test_entropies_of_certain_and_of_clueless_distributions() -> None:
    logits = torch.stack([torch.zeros(V), torch.arange(V) * 200.0])
    for name in ("forward_kl", "jsd"):
        arguments = (logits, logits.flip(0), losses.by_name(name), 1.0, None)
        look = dense_block(*arguments, look=True)[2]
        assert look is not None
        assert look.student_entropy.tolist() == pytest.approx([math.log(V), 0.0], abs=1e-5)
        assert look.teacher_entropy.tolist() == pytest.approx([0.0, math.log(V)], abs=1e-5)


def test_no_block_changes_the_logits_that_it_is_given() -> None:
    student, teacher, weights = (one.float() for one in pair())
    kept = (student.clone(), teacher.clone(), weights.clone())
    top = top_k(teacher.clone(), K, 1.0)
    drawn = sample(teacher, 1.0, uniforms(1, torch.arange(N), 6))
    for name in NAMES:
        dense_block(student, teacher, losses.by_name(name), 1.0, weights, look=True)
        top_k_block(student, top, losses.by_name(name), 1.0, weights)
    samples_block(student, drawn, 1.0, weights)
    for one, other in zip((student, teacher, weights), kept, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "adaptive_kl"])
def test_places_that_are_not_used_change_nothing(name: DivergenceName) -> None:
    torch.manual_seed(3)
    student, theirs = torch.randn(5, 12), torch.randn(5, 12)
    among = torch.tensor([7, 2, 9])
    narrow, wide = (top_k(theirs.clone(), count, 1.5, among) for count in (3, 6))
    assert wide.ids[:, 3:].eq(wide.ids[:, :1]).all()
    assert wide.log_p[:, 3:].eq(-torch.inf).all()
    found = [
        top_k_block(student.clone(), top, losses.by_name(name), 1.5, torch.full((5, 1), 0.3))
        for top in (narrow, wide)
    ]
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_where_no_word_is_told_apart_there_is_no_difference() -> None:
    none = TopK(
        torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -torch.inf), torch.zeros(2)
    )
    value, gradient = top_k_block(
        torch.randn(2, 8), none, losses.by_name("forward_kl"), 1.0, torch.ones(2, 1)
    )
    assert gradient is not None
    assert not value.any()
    assert not gradient.any()
