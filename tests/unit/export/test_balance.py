"""A balanced student says the same, and loses less when it is rounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.export.balance import BITS, BLOCK, LAYOUTS, balance, places_of, rounded

ROWS = [[3, 7, 11, 2, 30, 41, 5, 9], [8, 8, 1, 0, 49, 17, 23]]
Make = Callable[..., Any]
NEEDED: dict[str, dict[str, int]] = {
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
}
"""Fields whose defaults lie outside the small vocabulary."""


def logits_of(model: Any) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0] for row in ROWS]


def quantised(model: Any) -> Any:
    """A copy whose balanced matrices lie on the estimate's grid."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for place in places_of(made) or []:
            for matrix in place.matrices:
                matrix.copy_(rounded(matrix))
    return made


def divergence(one: Any, other: Any) -> float:
    """Mean KL of the second's distributions from the first's."""
    total = 0.0
    for p, q in zip(logits_of(one), logits_of(other), strict=True):
        a, b = (x.double().log_softmax(-1) for x in (p, q))
        total += float((a.exp() * (a - b)).sum(-1).mean())
    return total / len(ROWS)


def loud(model: Any) -> Any:
    """A student with some inputs that are a hundred times as large as the others, as real ones are,
    and small weights for them."""
    with torch.no_grad():
        for place in places_of(model) or []:
            if place.group is None:
                for matrix in place.matrices:
                    matrix[:, ::13] /= 64
                for feed in place.feeds:
                    feed[::13] = (feed[::13] + place.offset) * 64 - place.offset
    return model


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_what_it_says_stays_the_same_to_the_bit(random_model: Make, kind: str) -> None:
    model = loud(random_model(kind, norms=0.2, **NEEDED.get(kind, {})))
    before, weights = logits_of(model), copy.deepcopy(model.state_dict())
    left = balance(model, ROWS)
    assert left is not None
    assert left < 0.9
    changed = [
        name for name, one in model.state_dict().items() if not torch.equal(one, weights[name])
    ]
    assert changed
    assert not [name for name in changed if "embed" in name or "lm_head" in name]
    after = logits_of(model)
    if kind.startswith("gemma"):  # its norms add one to their weights, which rounds
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(after, before, strict=True))
    else:
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_it_loses_less_when_it_is_rounded(random_model: Make, kind: str) -> None:
    model = loud(random_model(kind, norms=0.2, **NEEDED.get(kind, {})))
    bare = divergence(model, quantised(model))
    balance(model, ROWS)
    assert divergence(model, quantised(model)) < 0.8 * bare


def test_an_unknown_architecture_is_left_as_it_is(random_model: Make) -> None:
    model = random_model("gpt2")
    weights = copy.deepcopy(model.state_dict())
    assert places_of(model) is None
    assert balance(model, ROWS) is None
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())


def test_inputs_that_share_a_value_share_its_factor(random_model: Make) -> None:
    model = random_model("llama", spread=1.0)
    heads, values = model.config.num_attention_heads, model.config.num_key_value_heads
    assert heads > values
    before = [layer.self_attn.o_proj.weight.clone() for layer in model.model.layers]
    balance(model, ROWS)
    for layer, old in zip(model.model.layers, before, strict=True):
        factors = (layer.self_attn.o_proj.weight / old).log2()
        assert torch.equal(factors, factors.round())  # powers of two
        shared = factors[0].view(values, heads // values, -1)
        assert torch.equal(shared, shared[:, :1].expand_as(shared))


def test_a_place_that_hears_nothing_is_left(random_model: Make) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()  # so nothing reaches the next matrix
    down = model.model.layers[0].mlp.down_proj.weight.clone()
    before = logits_of(model)
    assert balance(model, ROWS) is not None
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, down)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), before, strict=True))


def test_the_grid_by_hand() -> None:
    row = torch.zeros(1, BLOCK)
    row[0, :5] = torch.tensor([-8.0, 7.0, 3.4, -3.6, 0.49])  # the largest is -8: a step is 1
    assert rounded(row)[0, :6].tolist() == [-8.0, 7.0, 3.0, -4.0, 0.0, 0.0]
    assert rounded(-row)[0, :3].tolist() == [8.0, -7.0, -3.0]  # its sign turns with the largest's
    assert torch.equal(rounded(torch.zeros(2, 40)), torch.zeros(2, 40))  # and rows are padded


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(1, 100), st.integers(0, 999), st.integers(-5, 5))
def test_the_grid_knows_no_size_and_is_off_by_a_step_at_most(
    outputs: int, inputs: int, seed: int, power: int
) -> None:
    matrix = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    on_grid = rounded(matrix)
    step = matrix.abs().max() / 2 ** (BITS - 1)
    assert float((on_grid - matrix).abs().max()) <= float(step) * 1.0001
    assert torch.equal(rounded(on_grid), on_grid)
    assert torch.equal(rounded(matrix * 2.0**power), on_grid * 2.0**power)
