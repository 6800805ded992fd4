"""What holds for every layer map, hidden state, attention map and schedule."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from potstill.distill.layers import cosine_rows, layer_pairs, mse_rows
from potstill.distill.maps import attention_kl
from potstill.distill.schedules import Schedule, ever, highest, weight_at
from potstill.errors import TrainingError

DEPTH = st.integers(1, 80)
STATES = arrays("float32", (4, 6), elements=st.floats(-1e4, 1e4, width=32))
SHARE = st.floats(0, 1)
WEIGHT = st.floats(0, 100)


@given(DEPTH, DEPTH)
def test_uniform_maps_rise_to_the_last_layer_of_both(student: int, teacher: int) -> None:
    pairs = layer_pairs("uniform", student, teacher)
    assert pairs[-1] == (student, teacher)
    assert len(pairs) == min(student, teacher)
    assert min(pairs[0]) >= 1
    for before, after in pairwise(pairs):
        assert before[0] < after[0]
        assert before[1] < after[1]
    if teacher >= student:
        assert all(abs(two - one * teacher / student) <= 0.5 for one, two in pairs)


@given(DEPTH, DEPTH)
def test_uniform_maps_are_turned_around_with_their_sides(student: int, teacher: int) -> None:
    turned = [(two, one) for one, two in layer_pairs("uniform", teacher, student)]
    assert layer_pairs("uniform", student, teacher) == turned


@given(DEPTH, DEPTH, st.integers(0, 100))
def test_last_k_keeps_the_distance_from_the_end(student: int, teacher: int, count: int) -> None:
    if not 1 <= count <= min(student, teacher):
        with pytest.raises(TrainingError):
            layer_pairs(f"last-{count}", student, teacher)
        return
    pairs = layer_pairs(f"last-{count}", student, teacher)
    assert [student - one for one, _ in pairs] == list(range(count))[::-1]
    assert [teacher - two for _, two in pairs] == list(range(count))[::-1]


@given(DEPTH, DEPTH, st.dictionaries(st.integers(-1, 82), st.integers(-1, 82), max_size=5))
def test_an_explicit_map_is_kept_or_refused_whole(
    student: int, teacher: int, layers: dict[int, int]
) -> None:
    fits = all(1 <= one <= student and 1 <= two <= teacher for one, two in layers.items())
    if layers and fits:
        assert dict(layer_pairs(layers, student, teacher)) == layers
        return
    with pytest.raises(TrainingError) as caught:
        layer_pairs(layers, student, teacher)
    assert caught.value.hint


@settings(max_examples=60, deadline=None)
@given(STATES, STATES)
def test_distances_and_their_gradients_are_finite_and_within_bounds(
    one: object, other: object
) -> None:
    student, teacher = torch.tensor(one).requires_grad_(), torch.tensor(other)
    for rows, highest_value in ((mse_rows, float("inf")), (cosine_rows, 2.0)):
        values = rows(student, teacher)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        assert float(values.detach().min()) >= 0
        assert float(values.detach().max()) <= highest_value + 1e-5
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()


@settings(max_examples=60, deadline=None)
@given(STATES, STATES)
def test_the_cosine_distance_equals_its_definition_in_float64(one: object, other: object) -> None:
    s, t = np.asarray(one, np.float64), np.asarray(other, np.float64)
    norms = np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1)
    values = cosine_rows(torch.tensor(one), torch.tensor(other)).numpy()
    far = (norms[0] > 1e-5) & (norms[1] > 1e-5)
    expected = 1 - (s * t).sum(1)[far] / (norms[0] * norms[1])[far]
    np.testing.assert_allclose(values[far], expected, rtol=1e-5, atol=1e-6)


def _maps(seed: int, heads: int, width: int, length: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    return (
        torch.randn(heads, length, width, generator=make, dtype=torch.float64),
        torch.randn(1, length, width, generator=make, dtype=torch.float64),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 10),
    st.floats(0.01, 20),
    st.integers(0, 1000),
)
def test_attention_maps_diverge_by_at_least_0_however_they_are_chunked(
    student_heads: int, teacher_heads: int, length: int, chunk: int, scale: float, seed: int
) -> None:
    found = []
    for size in (chunk, None):
        q, k = (one.requires_grad_() for one in _maps(seed, student_heads, 3, length))
        value = attention_kl(
            q,
            k,
            *_maps(seed + 1, teacher_heads, 2, length),
            student_scale=scale,
            teacher_scale=scale,
            weights=torch.linspace(0, 2, length, dtype=torch.float64),
            chunk=size,
        )
        value.backward()
        found.append([value.detach(), q.grad, k.grad])
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0][0]) >= -1e-9
    assert all(torch.isfinite(one).all() for one in found[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.floats(0.01, 20), st.integers(0, 1000))
def test_equal_attention_diverges_by_nothing_and_pulls_nowhere(
    heads: int, length: int, scale: float, seed: int
) -> None:
    q, k = (one.requires_grad_() for one in _maps(seed, heads, 3, length))
    value = attention_kl(
        q, k, q, k, student_scale=scale, teacher_scale=scale, weights=torch.ones(length)
    )
    value.backward()
    assert q.grad is not None
    assert float(value.detach().abs()) <= 1e-12
    assert float(q.grad.abs().max()) <= 1e-9


@given(
    WEIGHT,
    WEIGHT,
    st.sampled_from(["linear", "cosine"]),
    SHARE,
    SHARE,
    st.integers(1, 1000),
)
def test_a_schedule_goes_from_its_start_to_its_end_and_never_back(
    start: float, end: float, shape: str, begin: float, until: float, steps: int
) -> None:
    if begin == until:
        return
    begin, until = sorted((begin, until))
    schedule = Schedule.model_validate(
        {"start": start, "end": end, "shape": shape, "begin": begin, "until": until}
    )
    values = [weight_at(schedule, step, steps) for step in range(steps)]
    assert values[0] == start
    assert steps == 1 or values[-1] == end
    low, high = sorted((start, end))
    slack = 1e-12 * high
    assert all(low - slack <= value <= high + slack for value in values)
    forward = 1 if end >= start else -1
    steady = pairwise(values)
    assert all(forward * (after - before) >= -slack for before, after in steady)
    assert highest(schedule) == high
    assert ever(schedule) == (high > 0)
