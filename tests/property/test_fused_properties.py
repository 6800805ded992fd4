"""The fused output layer in fp32 against float64, whatever the logits, layers and weights."""

from __future__ import annotations

import typing
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.distill import losses
from potstill.distill.fused import Scores, Terms, linear_scores
from potstill.distill.objective import DivergenceName
from potstill.distill.signals import HiddenStates
from potstill.models.output import OutputLayer

NAMES = typing.get_args(DivergenceName)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """Both models' last states and output layers; all tensors are float64 of fp32 values."""

    hidden: Tensor
    student: OutputLayer
    states: Tensor
    teacher: OutputLayer
    terms: Terms
    vocabulary: int
    name: str = "forward_kl"
    temperature: float = 1.0


@dataclass(frozen=True)
class Result:
    """A loss and its gradients."""

    loss: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def layer(
    make: torch.Generator,
    words: int,
    width: int,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
) -> OutputLayer:
    weight = torch.randn(words, width, generator=make).double()
    added = torch.randn(words, generator=make).double() if bias else None
    return OutputLayer(weight, added, scale, softcap)


def case(
    seed: int = 0,
    *,
    tokens: int = 13,
    vocabulary: int = 31,
    padding: tuple[int, int] = (0, 0),
    size: float = 3.0,
    shaped: bool = False,
    bias: bool = False,
    name: str = "forward_kl",
    temperature: float = 1.0,
) -> Case:
    """size: of the logits, about, before scale and cap."""
    make = torch.Generator().manual_seed(seed)
    hidden, states = (
        (torch.randn(tokens, width, generator=make) * size / width**0.5).double()
        for width in (12, 16)
    )
    cap = 30.0 if shaped else None
    scales = (0.5, 1.5) if shaped else (1.0, 1.0)
    student = layer(make, vocabulary + padding[0], 12, bias, scales[0], cap)
    teacher = layer(make, vocabulary + padding[1], 16, bias, scales[1], cap)
    kd, ce = torch.rand(tokens, generator=make), torch.rand(tokens, generator=make)
    kd[1::4] = 0
    ce[1::3] = 0  # row 1 and every twelfth after it want nothing
    targets = torch.randint(0, vocabulary, (tokens,), generator=make)
    terms = Terms(targets, kd, ce)
    return Case(hidden, student, states, teacher, terms, vocabulary, name, temperature)


def leaves(one: Case) -> tuple[Tensor, OutputLayer]:
    bias = one.student.bias
    taking = replace(
        one.student,
        weight=one.student.weight.clone().requires_grad_(),
        bias=None if bias is None else bias.clone().requires_grad_(),
    )
    return one.hidden.clone().requires_grad_(), taking


def finished(loss: Tensor, hidden: Tensor, student: OutputLayer) -> Result:
    loss.backward()
    bias = None if student.bias is None else student.bias.grad
    assert hidden.grad is not None
    assert student.weight.grad is not None
    return Result(loss.detach(), hidden.grad, student.weight.grad, bias)


def logits_of(output: OutputLayer, hidden: Tensor, words: int) -> Tensor:
    z = hidden @ output.weight[:words].T
    z = z if output.bias is None else z + output.bias[:words]
    z = z * output.scale
    return z if output.softcap is None else output.softcap * torch.tanh(z / output.softcap)


def exact(one: Case) -> Result:
    """In float64, from whole matrices of logits."""
    hidden, student = leaves(one)
    logits = logits_of(student, hidden, one.vocabulary)
    theirs = logits_of(one.teacher, one.states, one.vocabulary)
    kd = losses.per_token(losses.by_name(one.name), logits, theirs, one.temperature)
    ce = torch.nn.functional.cross_entropy(logits, one.terms.targets, reduction="none")
    asked = (one.terms.kd_weights != 0, one.terms.ce_weights != 0)
    loss = (kd * one.terms.kd_weights)[asked[0]].sum() + (ce * one.terms.ce_weights)[asked[1]].sum()
    return finished(loss, hidden, student)


def single(output: OutputLayer) -> OutputLayer:
    bias = None if output.bias is None else output.bias.float()
    return replace(output, weight=output.weight.float(), bias=bias)


def fused(one: Case, chunk_rows: int | None = None, **settings: bool) -> tuple[Result, Scores]:
    hidden, student = leaves(replace(one, hidden=one.hidden.float(), student=single(one.student)))
    scores = linear_scores(
        hidden,
        student,
        HiddenStates(one.states.float(), single(one.teacher)),
        one.terms,
        vocabulary=one.vocabulary,
        divergence=losses.by_name(one.name),
        temperature=one.temperature,
        chunk_rows=chunk_rows,
        **settings,
    )
    return finished(scores.loss, hidden, student), scores


def assert_near(
    found: Result, expected: Result, tolerance: float = TOLERANCE, scale: Result | None = None
) -> None:
    """Relative to the size of what is expected, or of `scale` where that is larger."""
    for name, value in vars(expected).items():
        if value is None:
            assert getattr(found, name) is None
            continue
        size = max(value.norm(), getattr(scale, name).norm() if scale is not None else 0.0)
        error = float((getattr(found, name).double() - value).norm() / size)
        assert error < tolerance, f"{name} is off by {error:.1e}"


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 20),
    vocabulary=st.integers(2, 40),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    size=st.floats(0.5, 8.0),
    shaped=st.booleans(),
    bias=st.booleans(),
    name=st.sampled_from(NAMES),
    temperature=st.sampled_from([0.5, 1.0, 2.5, 8.0]),
    chunk_rows=st.sampled_from([1, 4, None]),
)
def test_value_and_gradients_are_those_of_float64(
    seed: int,
    tokens: int,
    vocabulary: int,
    padding: tuple[int, int],
    size: float,
    shaped: bool,
    bias: bool,
    name: str,
    temperature: float,
    chunk_rows: int | None,
) -> None:
    one = case(
        seed,
        tokens=tokens,
        vocabulary=vocabulary,
        padding=padding,
        size=size,
        shaped=shaped,
        bias=bias,
        name=name,
        temperature=temperature,
    )
    # A draw may have hardly any loss or gradient (two words, a high temperature): what cancellation
    # has left is compared with the cross-entropy of other words, which has the size of its terms.
    terms = one.terms
    size_of = terms.ce_weights + temperature**2 * terms.kd_weights
    other = Terms((terms.targets + 1) % vocabulary, 0 * terms.kd_weights, size_of)
    scale = exact(replace(one, terms=other))
    assert_near(fused(one, chunk_rows)[0], exact(one), scale=scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logits_of_a_hundred(name: str, temperature: float) -> None:
    one = case(size=100.0, tokens=40, name=name, temperature=temperature)
    assert float(logits_of(one.student, one.hidden, one.vocabulary).abs().max()) > 100
    assert_near(fused(one)[0], exact(one), 2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("right", [True, False], ids=["student agrees", "student disagrees"])
def test_a_teacher_that_is_sure_of_one_word(name: str, right: bool) -> None:
    one = case(name=name)
    best = logits_of(one.student, one.hidden, one.vocabulary)
    words = best.argmax(-1) if right else best.argmin(-1)
    states = 1000.0 * torch.nn.functional.one_hot(words, one.vocabulary).double()
    teacher = OutputLayer(torch.eye(one.vocabulary, dtype=torch.float64))
    sure = replace(one, states=states, teacher=teacher)
    found = fused(sure)[0]
    assert all(value is None or bool(torch.isfinite(value).all()) for value in vars(found).values())
    # Of the reverse KL, log p is -1000 for all words but one: its rounding, 6e-5, stays when the
    # gradient q (log q - log p - KL) takes the mean away.
    assert_near(found, exact(sure), 2e-4 if name in ("reverse_kl", "adaptive_kl") else TOLERANCE)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "total_variation"])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-3])
def test_a_student_that_is_nearly_its_teacher(name: str, apart: float) -> None:
    """Not for the total variation, whose gradient jumps where p = q."""
    one = case(name=name)
    noise = torch.randn(one.hidden.shape, generator=torch.Generator().manual_seed(8))
    close = replace(
        one,
        states=one.hidden,
        teacher=one.student,
        hidden=(one.hidden + apart * noise).float().double(),
        terms=replace(one.terms, ce_weights=torch.zeros(len(one.hidden))),
    )
    # The value is a sum of terms p (log p - log q) of both signs that nearly cancel, the gradient
    # a difference q - p of nearly equal numbers: what fp32 can promise is an error that is small
    # against those terms, not against what is left of them. The cross-entropy has their size.
    zero = torch.zeros(len(one.hidden))
    terms = replace(one.terms, kd_weights=zero, ce_weights=one.terms.kd_weights)
    scale = exact(replace(one, terms=terms))
    found, scores = fused(close)
    assert_near(found, exact(close), scale=scale)
    assert float(scores.kd.min()) > -1e-5


def test_a_student_that_is_its_teacher_hardly_moves_by_total_variation() -> None:
    one = case(name="total_variation")
    same = replace(one, states=one.hidden, teacher=one.student)
    _, scores = fused(same)
    assert float(scores.kd.abs().max()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [3.0, 60.0])
def test_biased_scaled_and_capped_output_layers(name: str, size: float) -> None:
    """Both sides; at 60 most logits are near Gemma's cap of 30, where its slope is almost 0."""
    one = case(size=size, tokens=40, shaped=True, bias=True, name=name, temperature=1.5)
    largest = float(logits_of(one.student, one.hidden, one.vocabulary).abs().max())
    assert largest < 30
    assert largest > 25 or size < 60
    assert_near(fused(one)[0], exact(one), 2e-5)


@pytest.mark.parametrize("padding", [(7, 0), (0, 7), (3, 9)])
def test_padded_words_count_on_neither_side(padding: tuple[int, int]) -> None:
    one = case(padding=padding, bias=True)
    found = fused(one)[0]
    assert_near(found, exact(one))
    loud = []
    for output in (one.student, one.teacher):
        assert output.bias is not None
        weight, bias = output.weight.clone(), output.bias.clone()
        weight[one.vocabulary :], bias[one.vocabulary :] = 1e4, float("nan")
        loud.append(replace(output, weight=weight, bias=bias))
    again = fused(replace(one, student=loud[0], teacher=loud[1]))[0]
    for name, value in vars(found).items():
        assert torch.equal(getattr(again, name), value), name
    assert float(again.weight[one.vocabulary :].abs().sum()) == 0
    assert again.bias is not None
    assert float(again.bias[one.vocabulary :].abs().sum()) == 0


def test_tied_weights_gather_the_gradient_of_both_their_uses() -> None:
    one = case(tokens=20)
    ids = torch.arange(20) % 7
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(2)).double() / 3

    def gradient(weight: Tensor, plain: bool) -> Tensor:
        tied = torch.nn.Parameter(weight)
        hidden = torch.tanh(torch.nn.functional.embedding(ids, tied) @ mix.to(weight.dtype))
        if plain:
            logits, theirs = hidden @ tied.T, logits_of(one.teacher, one.states, one.vocabulary)
            kd = losses.per_token(losses.by_name(one.name), logits, theirs, 1.0)
            ce = torch.nn.functional.cross_entropy(logits, one.terms.targets, reduction="none")
            loss = (kd * one.terms.kd_weights).sum() + (ce * one.terms.ce_weights).sum()
        else:
            said = HiddenStates(one.states.float(), single(one.teacher))
            words = one.vocabulary
            loss = linear_scores(hidden, OutputLayer(tied), said, one.terms, vocabulary=words).loss
        loss.backward()
        assert tied.grad is not None
        return tied.grad

    expected = gradient(one.student.weight.clone(), True)
    found = gradient(one.student.weight.float(), False)
    assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCE
    output_alone = exact(one).weight
    assert float((expected - output_alone).norm() / expected.norm()) > 0.1  # both uses count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_rows", [1, 3, None])
def test_rows_of_no_weight_are_never_multiplied(name: str, chunk_rows: int | None) -> None:
    one = case(tokens=30, name=name, bias=True)
    idle = (one.terms.kd_weights == 0) & (one.terms.ce_weights == 0)
    assert 0 < idle.sum() < 30
    planted = [side.clone() for side in (one.hidden, one.states)]
    for side in planted:
        side[idle] = float("nan")
    found, scores = fused(replace(one, hidden=planted[0], states=planted[1]), chunk_rows)
    assert_near(found, exact(one))
    assert float(found.hidden[idle].abs().sum()) == 0
    assert float(scores.kd[idle].abs().sum() + scores.ce[idle].abs().sum()) == 0


def test_rows_that_want_the_cross_entropy_alone_never_ask_the_teacher() -> None:
    one = case(tokens=30)
    states = one.states.clone()
    states[one.terms.kd_weights == 0] = float("nan")
    assert bool(((one.terms.kd_weights == 0) & (one.terms.ce_weights != 0)).any())
    assert_near(fused(replace(one, states=states))[0], exact(one))


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_weight_at_all_is_a_loss_of_nothing(tokens: int) -> None:
    one = case(tokens=tokens, bias=True)
    zero = torch.zeros(tokens)
    idle = replace(one, terms=Terms(one.terms.targets, zero, zero))
    found = fused(idle)[0]
    for name, value in vars(found).items():
        assert float(value.abs().sum()) == 0, name
    assert found.weight.shape == one.student.weight.shape
    assert found.hidden.shape == one.hidden.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_figures_of_each_row_are_those_of_float64(name: str, temperature: float) -> None:
    one = case(tokens=30, shaped=True, bias=True, name=name, temperature=temperature)
    _, scores = fused(one, 7, details=True)
    logits = logits_of(one.student, one.hidden, one.vocabulary)
    theirs = logits_of(one.teacher, one.states, one.vocabulary)
    taught, asked = one.terms.kd_weights != 0, one.terms.ce_weights != 0
    kd = losses.per_token(losses.by_name(name), logits, theirs, temperature)
    ce = torch.nn.functional.cross_entropy(logits, one.terms.targets, reduction="none")
    entropies = [
        torch.distributions.Categorical(logits=each / temperature).entropy()
        for each in (logits, theirs)
    ]
    same = (logits.argmax(-1) == theirs.argmax(-1)).double()
    expected = {
        "kd": kd * taught,
        "ce": ce * asked,
        "agreement": same * taught,
        "student_entropy": entropies[0] * taught,
        "teacher_entropy": entropies[1] * taught,
    }
    for figure, value in expected.items():
        found = getattr(scores, figure).double()
        torch.testing.assert_close(found, value, rtol=2e-5, atol=2e-5 * temperature**2, msg=figure)
