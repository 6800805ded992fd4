"""The fit of what is left: exact where it can be, and numpy's ridge regression elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from potstill.errors import ModelError
from potstill.models import surgery, width
from potstill.models.body import body_of
from potstill.models.importance import measure, shape_of
from potstill.models.refit import refit

BATCHES = [
    torch.randint(0, 50, (1, 60), generator=torch.Generator().manual_seed(n)) for n in range(3)
]


@pytest.fixture(params=["llama", "qwen2", "gemma3_text"])
def model(request: pytest.FixtureRequest, random_model: Callable[..., Any]) -> Any:
    made = random_model(
        request.param,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=6,
    )
    return made.double().requires_grad_(False)


def _carved(model: Any, layers: Any = range(4), **sizes: int) -> tuple[Any, width.Parts]:
    importance = measure(model, BATCHES)
    wanted = dataclasses.replace(shape_of(model), layers=len(layers), **sizes)
    parts = width.choose(shape_of(model), wanted, importance, layers)
    return width.carve(model, parts, importance.shares), parts


def _kl(model: Any, small: Any) -> float:
    with torch.no_grad():
        pairs = [(model(ids).logits, small(ids).logits) for ids in BATCHES]
    return sum(
        float((p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
        for p, q in pairs
    ) / sum(ids.numel() for ids in BATCHES)


def test_an_uncut_model_stays_as_it_is(model: Any) -> None:
    same, parts = _carved(model)
    before = {name: value.clone() for name, value in same.state_dict().items()}
    refit(model, same, parts, BATCHES, 0.03)
    for name, value in same.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_neurons_that_others_can_stand_in_for_cost_nothing(model: Any) -> None:
    for layer in body_of(model).layers:  # each neuron of the second half is one of the first
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight[10:] = linear.weight[:10]
        layer.mlp.down_proj.weight[:, 10:] *= 0.2
    importance = measure(model, BATCHES)
    shape = shape_of(model)
    parts = dataclasses.replace(
        width.choose(shape, shape, importance, range(4)), neurons=(tuple(range(10)),) * 4
    )
    small = width.carve(model, parts, importance.shares)
    assert _kl(model, small) > 1e-3
    refit(model, small, parts, BATCHES, 1e-9)
    assert _kl(model, small) < 1e-6


def test_a_fit_is_the_ridge_regression_that_numpy_finds(model: Any) -> None:
    small, parts = _carved(model, intermediate=12)
    lean, layer = (body_of(one).layers[0] for one in (small, model))
    old = lean.mlp.down_proj.weight.clone().numpy()
    reads: dict[str, list[Any]] = {"in": [], "out": [], "mid": [], "behind": []}
    refitted, _ = _carved(model, intermediate=12)
    refit(model, refitted, parts, BATCHES, 0.1)
    new = body_of(refitted).layers[0].mlp.down_proj.weight.numpy()
    # Attention of the first layer is whole, so it is fitted to what it already says.
    lean.mlp.down_proj.register_forward_pre_hook(lambda _, args: reads["in"].append(args[0][0]))
    layer.mlp.down_proj.register_forward_hook(lambda *args: reads["out"].append(args[2][0]))
    for ids in BATCHES:
        small(ids), model(ids)
    x, y = (torch.cat(reads[name]).double().numpy() for name in ("in", "out"))
    pull = 0.1 * np.trace(x.T @ x) / x.shape[1]
    stacked = np.vstack([x, np.sqrt(pull) * np.eye(x.shape[1])])
    targets = np.vstack([y, np.sqrt(pull) * old.T])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "cut",
    [
        {"hidden": 18},
        {"intermediate": 10},
        {"heads": 3, "kv_heads": 1},
        {"layers": [0, 2, 3]},
        {"layers": [1, 3], "hidden": 18, "intermediate": 12, "heads": 4, "kv_heads": 2},
    ],
    ids=str,
)
def test_the_fitted_model_is_nearer_to_the_whole_one(model: Any, cut: dict[str, Any]) -> None:
    plain, parts = _carved(model, **cut)
    fitted, _ = _carved(model, **cut)
    refit(model, fitted, parts, BATCHES, 0.03)
    assert _kl(model, fitted) < _kl(model, plain)
    assert surgery.parameters_of(fitted) == surgery.parameters_of(plain)


def test_states_that_are_not_finite_are_one_error(model: Any) -> None:
    small, parts = _carved(model, intermediate=12)
    with torch.no_grad():
        body_of(model).layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite, so nothing is fitted"):
        refit(model, small, parts, BATCHES, 0.1)
