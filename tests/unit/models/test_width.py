"""Carving: what is cut away exactly, against masked models, in every family; saved and loaded."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from potstill.errors import ModelError
from potstill.models import surgery, width
from potstill.models.body import body_of
from potstill.models.importance import channel_norms, measure, shape_of
from potstill.models.shape import FAMILIES
from potstill.models.surgery import parameters_of

BATCHES = [torch.arange(24).view(2, 12), torch.arange(20, 41).view(1, 21)]
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-12,  # so that what is the same but for the eps is the same
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma3 untied": ("gemma3_text", {"tie_word_embeddings": False}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
}


def make(name: str, **changes: Any) -> Any:
    """A random model in float64, every parameter of it drawn: biases and norms too."""
    family, fields = VARIANTS[name]
    config = AutoConfig.for_model(family, **(SIZES | fields | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name and "gemma" not in family else 0.0
            parameter.normal_(centre, 0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=sorted(VARIANTS))
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(BATCHES[1]).logits


def _cut(model: Any, layers: Any = None, **sizes: int) -> tuple[Any, width.Parts]:
    shape, importance = shape_of(model), measure(model, BATCHES)
    layers = range(shape.layers) if layers is None else layers
    wanted = dataclasses.replace(shape, layers=len(layers), **sizes)
    parts = width.choose(shape, wanted, importance, layers)
    small = width.carve(model, parts, importance.shares)
    assert shape_of(small).sizes() == wanted.sizes()
    assert parameters_of(small) == wanted.parameters
    return small, parts


def _silence(model: Any, parts: width.Parts) -> None:
    """Set to zero, in place, whatever is not kept of neurons and heads."""
    size = int(model.config.head_dim)
    for layer, neurons, heads in zip(
        body_of(model).layers, parts.neurons, parts.heads, strict=True
    ):
        gone = [n for n in range(layer.mlp.down_proj.in_features) if n not in neurons]
        layer.mlp.down_proj.weight[:, gone] = 0
        columns = layer.self_attn.o_proj.weight.unflatten(1, (-1, size))
        columns[:, [n for n in range(columns.shape[1]) if n not in heads]] = 0


def test_without_neurons_and_heads_it_equals_the_model_in_which_they_are_masked(
    model: Any,
) -> None:
    for sizes in ({"intermediate": 12}, {"heads": 3, "kv_heads": 1}, {"heads": 4, "kv_heads": 2}):
        small, parts = _cut(model, **sizes)
        masked = copy.deepcopy(model)
        _silence(masked, parts)
        torch.testing.assert_close(_logits(small), _logits(masked), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(_logits(small), _logits(model))


def _mute(model: Any, channels: list[int]) -> None:
    """Let nothing write to these channels of the residual stream."""
    body = body_of(model)
    body.embed_tokens.weight[:, channels] = 0
    head = model.get_output_embeddings()
    head.weight[:, channels] = 0
    for layer in body.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight[channels] = 0
            if linear.bias is not None:
                linear.bias[channels] = 0


def test_channels_that_nothing_is_written_to_can_go(model: Any) -> None:
    silent = [1, 2, 7, 11, 20, 23]
    _mute(model, silent)
    small, parts = _cut(model, hidden=18)
    assert set(parts.channels) == set(range(24)) - set(silent)
    torch.testing.assert_close(_logits(small), _logits(model), rtol=1e-4, atol=1e-5)


def test_everything_at_once_saves_and_loads_as_the_same_model(model: Any, tmp_path: Path) -> None:
    small, _ = _cut(model, layers=[0, 2, 3], hidden=18, intermediate=12, heads=3, kv_heads=1)
    generated = [
        small.generate(BATCHES[0][:1], max_new_tokens=5, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*generated)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    )
    torch.testing.assert_close(_logits(again), _logits(small), rtol=1e-5, atol=1e-5)
    assert again.config.head_dim == 8
    assert again.config.num_hidden_layers == 3


def test_a_llama_whose_heads_do_not_divide_its_width_becomes_the_mistral_it_equals(
    tmp_path: Path,
) -> None:
    model = make("llama tied")
    silent = [0, 3, 4, 9]
    _mute(model, silent)
    small, _ = _cut(model, hidden=20)  # 6 heads
    assert small.config.model_type == "mistral"
    assert small.config.sliding_window is None
    torch.testing.assert_close(_logits(small), _logits(model), rtol=1e-4, atol=1e-5)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    )
    torch.testing.assert_close(_logits(again), _logits(small), rtol=1e-5, atol=1e-5)


def test_the_layers_of_a_carved_model_keep_their_own_kind_of_attention() -> None:
    model = make("gemma3 untied", sliding_window=8, sliding_window_pattern=2)
    kinds = model.config.layer_types
    assert len(set(kinds)) == 2
    small, _ = _cut(model, layers=[1, 2, 3])
    assert small.config.layer_types == kinds[1:]
    dropped = surgery.drop_layers(copy.deepcopy(model), [0])
    torch.testing.assert_close(_logits(small), _logits(dropped), rtol=1e-5, atol=1e-5)


def test_importance_is_what_its_words_say() -> None:
    model = make("llama with biases")
    found = measure(model, BATCHES)
    inputs: dict[str, list[torch.Tensor]] = {}
    layer = model.model.layers[1]
    watched = {"down": layer.mlp.down_proj, "out": layer.self_attn.o_proj}
    watched |= channel_norms(model)
    for name, module in watched.items():
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].flatten(0, -2))
        )
    for ids in BATCHES:
        _ = model(ids)
    seen = {name: torch.cat(some) for name, some in inputs.items()}
    neurons = [
        float((seen["down"][:, n : n + 1] * layer.mlp.down_proj.weight[:, n]).square().sum())
        for n in range(20)
    ]
    tokens = sum(ids.numel() for ids in BATCHES)
    torch.testing.assert_close(
        found.neurons[1], (torch.tensor(neurons).double() / tokens).sqrt(), rtol=1e-5, atol=0
    )
    for head in range(6):
        columns = slice(8 * head, 8 * head + 8)
        written = seen["out"][:, columns] @ layer.self_attn.o_proj.weight[:, columns].T
        energy = written.square().sum(-1).mean().sqrt()
        assert float(found.heads[1][head]) == pytest.approx(float(energy), rel=1e-5)
    for name, share in found.shares.items():
        squares = seen[name].square()
        expected = (squares / squares.sum(-1, keepdim=True)).mean(0)
        torch.testing.assert_close(share, expected, rtol=1e-5, atol=1e-9)
    assert len(channel_norms(model)) == 2 * 4 + 1


@pytest.mark.parametrize(("heads", "kv_heads"), [(5, 2), (4, 4), (0, 0), (4, 1), (2, 0)])
def test_heads_that_do_not_come_in_groups_are_refused(heads: int, kv_heads: int) -> None:
    with pytest.raises(ModelError, match="cannot be taken out of 6 in 2"):
        _cut(make("llama"), heads=heads, kv_heads=kv_heads)


def test_an_architecture_whose_widths_are_unknown_is_one_clear_error() -> None:
    stranger = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50))
    with pytest.raises(ModelError, match=r"'gpt2' cannot be cut; known are .*llama"):
        measure(stranger, BATCHES)
    changed = make("llama")
    changed.model.layers[0].mlp.gate_proj.bias = torch.nn.Parameter(torch.zeros(20).double())
    with pytest.raises(ModelError, match="where its configuration makes"):
        shape_of(changed)
    with pytest.raises(ModelError, match="no calibration text"):
        measure(make("llama"), [])
