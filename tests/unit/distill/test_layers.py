"""Layer maps, the states that hooks note, and the distances between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.distill.layers import (
    LayerStates,
    Projection,
    cosine_rows,
    hidden_cosine,
    hidden_mse,
    hidden_sums,
    layer_pairs,
    mse_rows,
    projection_for,
)
from potstill.errors import ModelError, TrainingError
from potstill.models.body import body_of
from potstill.models.surgery import drop_layers

N, D = 6, 5
Distance = Callable[..., Tensor]


def _states(seed: int, *shape: int) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (N, D)), generator=make)


def _ids() -> Tensor:
    return torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(3))


# Which layers belong together


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (3, 3, [(1, 1), (2, 2), (3, 3)]),
        (3, 4, [(1, 1), (2, 3), (3, 4)]),
        (4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        (4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        (1, 7, [(1, 7)]),
        (4, 2, [(2, 1), (4, 2)]),
        (5, 3, [(2, 1), (3, 2), (5, 3)]),
    ],
)
def test_uniform_spaces_the_layers_evenly_and_ends_with_the_last(
    student: int, teacher: int, pairs: list[tuple[int, int]]
) -> None:
    assert layer_pairs("uniform", student, teacher) == pairs


def test_last_k_pairs_the_last_layers_one_by_one() -> None:
    assert layer_pairs("last-1", 3, 8) == [(3, 8)]
    assert layer_pairs("last-3", 3, 8) == [(1, 6), (2, 7), (3, 8)]
    assert layer_pairs("last-2", 5, 2) == [(4, 1), (5, 2)]


@pytest.mark.parametrize("layers", ["last-0", "last-4", "last-100"])
def test_last_k_asks_for_no_more_layers_than_there_are(layers: str) -> None:
    with pytest.raises(TrainingError, match="the student has 3 and the teacher 8") as caught:
        layer_pairs(layers, 3, 8)
    assert "last-1 to last-3" in caught.value.hint


@pytest.mark.parametrize(
    "layers", ["", "last", "last-", "last--1", "last-two", "first-2", "last-1 "]
)
def test_another_word_is_refused(layers: str) -> None:
    with pytest.raises(TrainingError, match="is not known") as caught:
        layer_pairs(layers, 3, 8)
    assert "uniform" in caught.value.hint


def test_an_explicit_map_is_taken_as_it_is_by_the_students_layers() -> None:
    assert layer_pairs({3: 8, 1: 2}, 3, 8) == [(1, 2), (3, 8)]


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(TrainingError, match="empty"):
        layer_pairs({}, 3, 8)


@pytest.mark.parametrize(
    ("layers", "message", "hint"),
    [
        ({0: 1}, "student has layers 1 to 3", "add 1"),
        ({1: 0}, "teacher has layers 1 to 8", "add 1"),
        ({1: 2, 4: 8}, "student has layers 1 to 3", "subtract 1"),
        ({1: 2, 3: 9}, "teacher has layers 1 to 8", "subtract 1"),
        ({1: 11}, "teacher has layers 1 to 8", "the last is 8"),
        ({-1: 8}, "student has layers 1 to 3", "the last is 3"),
    ],
)
def test_embeddings_counted_as_a_layer_and_missing_layers_are_refused(
    layers: dict[int, int], message: str, hint: str
) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        layer_pairs(layers, 3, 8)
    assert hint in caught.value.hint


# The states that hooks note


def test_noted_states_are_those_that_transformers_returns(teacher: Any) -> None:
    ids = _ids()
    with torch.no_grad(), LayerStates(teacher, [1, 2, 3, 4]) as states:
        output = body_of(teacher)(input_ids=ids, use_cache=False, output_hidden_states=True)
    assert list(states) == [1, 2, 3, 4]
    for layer in (1, 2, 3):
        assert torch.equal(states[layer], output.hidden_states[layer])
    assert torch.equal(body_of(teacher).norm(states[4]), output.last_hidden_state)
    assert not torch.equal(states[4], output.last_hidden_state)


def test_only_what_was_asked_for_is_noted_and_no_hook_stays(teacher: Any) -> None:
    with LayerStates(teacher, [2]) as states:
        body_of(teacher)(input_ids=_ids())
    first = states[2]
    body_of(teacher)(input_ids=_ids() + 1)
    assert list(states) == [2]
    assert states[2] is first
    assert not any(layer._forward_hooks for layer in body_of(teacher).layers)


def test_hooks_go_away_when_the_model_fails(teacher: Any) -> None:
    with pytest.raises(IndexError), LayerStates(teacher, [1, 4]):
        body_of(teacher)(input_ids=_ids() + 10_000)
    assert not any(layer._forward_hooks for layer in body_of(teacher).layers)


def test_it_can_be_used_again_and_begins_anew(teacher: Any) -> None:
    noting = LayerStates(teacher, [1])
    with noting as first:
        body_of(teacher)(input_ids=_ids())
    with noting as second:
        body_of(teacher)(input_ids=_ids() + 1)
    assert not torch.equal(first[1], second[1])


def test_a_gradient_flows_through_the_noted_states_into_the_layers_below(teacher: Any) -> None:
    student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
    with LayerStates(student, [2]) as states:
        body_of(student)(input_ids=_ids())
    hidden_mse(states[2].flatten(0, 1), torch.zeros(18, 32)).backward()
    gradients = [
        [parameter.grad is not None for parameter in layer.parameters()]
        for layer in body_of(student).layers
    ]
    assert [all(layer) for layer in gradients] == [True, True, False]
    assert not any(gradients[2])
    assert body_of(student).embed_tokens.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_neither_states_nor_gradients(teacher: Any) -> None:
    found = []
    for checkpointing in (False, True):
        student = copy.deepcopy(teacher).requires_grad_(True).train()
        if checkpointing:
            new = hasattr(
                student, "activation_checkpointing_enable"
            )  # transformers 5.23 renamed it
            getattr(student, f"{'activation' if new else 'gradient'}_checkpointing_enable")()
        with LayerStates(student, [2, 4]) as states:
            body_of(student)(input_ids=_ids(), use_cache=False)
        noted = dict(states)
        sum(
            hidden_cosine(one.flatten(0, 1), torch.ones(18, 32)) for one in noted.values()
        ).backward()
        assert all(states[layer] is noted[layer] for layer in (2, 4))
        gradients = [p.grad for p in body_of(student).layers.parameters()]
        found.append([*noted.values(), *gradients])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks by the old name
def test_a_model_with_adapters_is_seen_through(teacher: Any) -> None:
    from peft import LoraConfig, get_peft_model

    with LayerStates(teacher, [3]) as plain:
        body_of(teacher)(input_ids=_ids())
    student = get_peft_model(copy.deepcopy(teacher), LoraConfig(target_modules="all-linear"))
    with LayerStates(student, [3]) as states:
        body_of(student)(input_ids=_ids())
    torch.testing.assert_close(states[3], plain[3])  # a fresh adapter changes nothing
    states[3].sum().backward()
    adapters = [
        parameter.grad
        for layer in body_of(student).layers[:3]
        for name, parameter in layer.named_parameters()
        if "lora_B" in name
    ]
    assert len(adapters) == 21
    assert all(grad is not None and grad.abs().sum() > 0 for grad in adapters)


class _Tupled(nn.Module):
    """A decoder whose layers return a tuple, as some architectures do."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Identity()])
        self.states = torch.zeros(*shape)

    def run(self) -> None:
        self.model.layers[0]((self.states, None))


def test_a_layer_may_return_a_tuple() -> None:
    model = _Tupled(2, 3, 4)
    with LayerStates(model, [1]) as states:
        model.run()
    assert states[1] is model.states


def test_what_is_not_one_state_a_token_is_refused() -> None:
    model = _Tupled(4, 2, 3, 4)
    with pytest.raises(TrainingError, match=r"\[4, 2, 3, 4\]"), LayerStates(model, [1]):
        model.run()


@pytest.mark.parametrize(("layer", "hint"), [(0, "add 1"), (5, "subtract 1")])
def test_a_layer_that_does_not_exist_is_refused(teacher: Any, layer: int, hint: str) -> None:
    with pytest.raises(TrainingError, match=f"Layer {layer} does not exist") as caught:
        LayerStates(teacher, [1, layer])
    assert hint in caught.value.hint


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ModelError):
        LayerStates(nn.Linear(2, 2), [1])


# The distances


def test_golden_values_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher = torch.tensor([[1.0, 0.0], [4.0, -3.0]])
    # ((0 + 4) / 2, (1 + 49) / 2)
    assert mse_rows(student, teacher).tolist() == [2.0, 25.0]
    # 1 - 1 / sqrt 5, and a right angle
    expected = [1 - 1 / math.sqrt(5), 1.0]
    assert cosine_rows(student, teacher).tolist() == pytest.approx(expected)
    weights = torch.tensor([0.5, 2.0])
    assert float(hidden_mse(student, teacher)) == 27.0
    assert float(hidden_mse(student, teacher, weights)) == 51.0
    assert float(hidden_cosine(student, teacher, weights)) == pytest.approx(
        0.5 * expected[0] + 2 * expected[1]
    )


def test_opposite_states_are_2_apart_and_multiples_not_at_all() -> None:
    states = _states(1)
    torch.testing.assert_close(cosine_rows(states, -2 * states), torch.full((N,), 2.0))
    assert float(cosine_rows(states, 3 * states).abs().max()) < 1e-12


def _references(student: Tensor, teacher: Tensor, weights: Tensor) -> dict[str, tuple[Any, Any]]:
    """Values and gradients with respect to the student, written out in float64."""
    s, t, w = (one.detach().double().numpy() for one in (student, teacher, weights))
    norm_s, norm_t = np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1)
    cosine = (s * t).sum(1) / (norm_s * norm_t)
    along = cosine[:, None] * s / norm_s[:, None] ** 2 - t / (norm_s * norm_t)[:, None]
    return {
        "mse": ((((s - t) ** 2).mean(1) * w).sum(), 2 * (s - t) * w[:, None] / s.shape[1]),
        "cosine": (((1 - cosine) * w).sum(), along * w[:, None]),
    }


@pytest.mark.parametrize(("name", "distance"), [("mse", hidden_mse), ("cosine", hidden_cosine)])
def test_value_and_gradient_equal_the_definition_in_float64(name: str, distance: Distance) -> None:
    student, teacher = _states(1).requires_grad_(), _states(2)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(5))
    value = distance(student, teacher, weights)
    value.backward()
    expected, gradient = _references(student, teacher, weights)[name]
    assert student.grad is not None
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", [hidden_mse, hidden_cosine])
def test_gradients_agree_with_finite_differences(distance: Distance) -> None:
    student, teacher = _states(1).double().requires_grad_(), _states(2).double()
    assert torch.autograd.gradcheck(lambda states: distance(states, teacher), (student,))


@pytest.mark.parametrize("distance", [hidden_mse, hidden_cosine])
def test_half_precision_is_widened_before_anything_is_squared(distance: Distance) -> None:
    student, teacher = _states(1).bfloat16().requires_grad_(), _states(2).bfloat16()
    value = distance(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance(student.float(), teacher.float()))
    value.backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_the_cosine_of_almost_equal_states_does_not_drown_in_rounding() -> None:
    student = torch.tensor([[1.0, 0.0]])
    teacher = torch.tensor([[1.0, 1e-4]])
    # 1 - cos(x) = x^2 / 2 for a small angle x
    assert float(hidden_cosine(student, teacher)) == pytest.approx(5e-9, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_state_without_a_direction_gives_1_and_no_gradient(size: float, side: str) -> None:
    student, teacher = _states(1), _states(2)
    if side != "teacher":
        student[2] *= size
    if side != "student":
        teacher[2] *= size
    student.requires_grad_()
    values = cosine_rows(student, teacher)
    values.sum().backward()
    assert float(values[2].detach()) == 1.0
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(student.grad[2].abs().sum()) == 0.0
    assert bool((student.grad[[0, 1, 3, 4, 5]].abs().sum(-1) > 0).all())


@pytest.mark.parametrize("size", [1e-4, 1e6, 1e15])
def test_the_cosine_does_not_depend_on_the_size(size: float) -> None:
    student, teacher = _states(1), _states(2)
    torch.testing.assert_close(cosine_rows(student * size, teacher), cosine_rows(student, teacher))


# The projection and the term


def test_the_projection_starts_as_the_identity_and_draws_no_random_number() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    wider, same = Projection([(1, 2), (3, 4)], 3, 5), Projection([(1, 1)], 4, 4)
    assert torch.equal(torch.get_rng_state(), before)
    states = _states(1, N, 3)
    projected = wider(states, 3).detach()
    assert torch.equal(projected[:, :3], states)
    assert float(projected[:, 3:].abs().sum()) == 0.0
    assert torch.equal(Projection([(1, 2)], 5, 3)(_states(1), 1), _states(1)[:, :3])
    assert torch.equal(same(states.new_ones(2, 4), 1), torch.ones(2, 4))
    again = Projection([(1, 2), (3, 4)], 3, 5)
    assert wider.state_dict().keys() == again.state_dict().keys() == {"maps.1", "maps.3"}
    assert all(
        torch.equal(one, again.state_dict()[name]) for name, one in wider.state_dict().items()
    )
    assert all(weight.dtype == torch.float32 for weight in wider.parameters())


def test_a_projection_is_made_where_widths_differ_or_it_is_asked_for() -> None:
    assert projection_for([(1, 1)], 4, 4) is None
    assert projection_for([(1, 1)], 4, 4, asked=True) is not None
    assert projection_for([(1, 1)], 3, 4) is not None


def _sums(
    projection: Projection | None, *given: Any, mse: bool = True, cosine: bool = True
) -> tuple[Tensor, Tensor]:
    return hidden_sums([(1, 2), (2, 4)], projection, *given, mse=mse, cosine=cosine)


def test_the_term_is_the_mean_over_pairs_of_sums_over_chosen_tokens() -> None:
    student = {layer: _states(layer, 2, 4, 3) for layer in (1, 2)}
    teacher = {layer: _states(10 + layer, 2, 4, 5) for layer in (2, 4)}
    projection = Projection([(1, 2), (2, 4)], 3, 5)
    with torch.no_grad():
        for number, weight in enumerate(projection.parameters()):
            weight.copy_(_states(20 + number, 5, 3))
    positions, weights = torch.tensor([0, 3, 6]), torch.tensor([0.5, 0.0, 2.0])
    mse, cosine = _sums(projection, student, teacher, positions, weights)
    expected_mse = expected_cosine = 0.0
    for one, other in ((1, 2), (2, 4)):
        for line, column, weight in ((0, 0, 0.5), (1, 2, 2.0)):
            s = projection.maps[str(one)].detach().double() @ student[one][line, column].double()
            t = teacher[other][line, column].double()
            expected_mse += weight * float(((s - t) ** 2).mean()) / 2
            expected_cosine += weight * float(1 - s @ t / (s.norm() * t.norm())) / 2
    assert float(mse.detach()) == pytest.approx(expected_mse, rel=1e-5)
    assert float(cosine.detach()) == pytest.approx(expected_cosine, rel=1e-5)


def test_student_and_projection_learn_and_the_teacher_does_not() -> None:
    student = {layer: _states(layer, 2, 4, 3).requires_grad_() for layer in (1, 2)}
    teacher = {layer: _states(layer, 2, 4, 5).requires_grad_() for layer in (2, 4)}
    projection = Projection([(1, 2), (2, 4)], 3, 5)
    positions = torch.tensor([1, 2, 7])
    mse, cosine = _sums(projection, student, teacher, positions, torch.ones(3))
    (mse + cosine).backward()
    for states in student.values():
        assert states.grad is not None
        touched = states.grad.flatten(0, 1).abs().sum(-1) > 0
        assert touched.nonzero()[:, 0].tolist() == [1, 2, 7]
    assert all(weight.grad is not None for weight in projection.parameters())
    assert all(states.grad is None for states in teacher.values())


def test_a_distance_that_is_not_asked_for_is_left_out() -> None:
    student = {layer: _states(layer, 2, 4, 5).requires_grad_() for layer in (1, 2)}
    teacher = {layer: _states(9, 2, 4, 5) for layer in (2, 4)}
    arguments = (student, teacher, torch.arange(3), torch.ones(3))
    mse, cosine = _sums(None, *arguments, mse=False)
    assert (float(mse), mse.requires_grad, cosine.requires_grad) == (0.0, False, True)
    mse, cosine = _sums(None, *arguments, cosine=False)
    assert (float(cosine), cosine.requires_grad, mse.requires_grad) == (0.0, False, True)


def test_a_token_of_weight_0_cannot_spoil_the_sum() -> None:
    student = {layer: _states(layer, 2, 4, 5).requires_grad_() for layer in (1, 2)}
    teacher = {layer: _states(9, 2, 4, 5) for layer in (2, 4)}
    for states in teacher.values():
        states[0, 1] = math.inf
    for weights, touched in (([1.0, 0.0], 1), ([0.0, 0.0], 0)):
        sums = _sums(None, student, teacher, torch.arange(2), torch.tensor(weights))
        total = sums[0] + sums[1]
        assert torch.isfinite(total)
        (gradient,) = torch.autograd.grad(total, student[1])
        assert int((gradient.abs().sum(-1) > 0).sum()) == touched


def test_a_student_that_is_its_teacher_is_0_apart(teacher: Any) -> None:
    pairs = layer_pairs("uniform", 4, 4)
    with torch.no_grad(), LayerStates(teacher, [student for student, _ in pairs]) as states:
        body_of(teacher)(input_ids=_ids())
    projection = projection_for(pairs, 32, 32, asked=True)
    given = (states, states, torch.arange(18), torch.ones(18))
    mse, cosine = hidden_sums(pairs, projection, *given, mse=True, cosine=True)
    assert float(mse.detach()) == 0.0
    assert float(cosine.detach()) == 0.0
