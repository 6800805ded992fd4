"""Sizes and operations against counts of others: published ones, the engine's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.costs.decoder import Decoder, of_reference, of_size, published
from potstill.distill.flops import Cost
from potstill.models.shape import shape_of_config

SAID = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-1.7B": 1_711_376_384,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "CodeLlama-34B": 33_743_970_304,
    "Llama-3-70B": 70_553_706_496,
}
"""Parameters as the models' pages have them, norms included."""


def test_published_sizes_are_those_of_their_pages() -> None:
    assert set(published()) == set(SAID)
    for name, one in published().items():
        assert one.weights == pytest.approx(SAID[name], rel=1e-3), name


def test_a_pass_is_counted_as_the_engine_counts_a_loaded_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    shape = shape_of_config(model.config.to_dict())
    cost, decoder = Cost.of(model), Decoder.of(shape)
    tokens, seen, predictions = 100, 17, 30
    whole = tokens * cost.a_token + tokens * seen * cost.a_pair + predictions * cost.a_prediction
    assert decoder.forward(tokens, seen, predictions) == whole
    norms = sum(one.numel() for one in model.parameters() if one.ndim == 1)
    assert decoder.weights == shape.parameters - norms


def saved_bytes(model: Any, tokens: int) -> int:
    """What autograd holds for the backward pass through the body, but for weights and their
    copies."""
    shapes = {tuple(one.shape) for one in model.parameters()}
    shapes |= {one[::-1] for one in shapes}
    held: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # by what is behind it: views are one
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model.model(torch.zeros(1, tokens, dtype=torch.long))
    sizes = (
        one.untyped_storage().nbytes() for one in held.values() if tuple(one.shape) not in shapes
    )
    return sum(sizes)


def test_a_layer_keeps_what_autograd_saves() -> None:
    """The difference of two depths, so that what is before and after the layers drops out."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens, saved = 40, {}
    sizes = {"hidden_size": 64, "intermediate_size": 176, "vocab_size": 96, "head_dim": 16}
    for layers in (2, 4):
        config = LlamaConfig(
            **sizes, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2
        )
        saved[layers] = saved_bytes(LlamaForCausalLM(config), tokens)
    decoder = Decoder.of(shape_of_config(config.to_dict()))
    foreseen = tokens * decoder.kept_bytes() / 2
    assert saved[4] - saved[2] == pytest.approx(foreseen, rel=0.02)


def test_a_layer_of_smollm2_keeps_what_was_measured_of_it() -> None:
    """1.03 MB a token were measured for 2,048 tokens (distill/loading.py); of them 0.24 are not of
    tokens: copies of the weights in bf16, chunks of the loss, the gradient of the embeddings."""
    one = published()["SmolLM2-135M"]
    assert one.kept_bytes() + 0.24e6 == pytest.approx(1.03e6, rel=0.15)
    assert one.kept_bytes(checkpointed=True) < one.kept_bytes() / 5


@given(st.floats(2e6, 3e11))
def test_any_size_has_a_decoder_of_about_that_size(weights: float) -> None:
    found = of_size(weights)
    if weights > 1e9:
        assert found.weights == pytest.approx(weights, rel=0.12)
    assert min(found.layers, found.hidden, found.heads, found.kv_heads) >= 1


@given(st.floats(0.1, 1.0))
def test_a_smaller_student_keeps_the_vocabulary_and_the_limit(share: float) -> None:
    teacher = published()["Llama-2-7B"]
    student = teacher.shrunk(share * teacher.weights)
    assert student.weights <= share * teacher.weights
    assert student.weights >= 0.75 * share * teacher.weights
    assert student.vocabulary == teacher.vocabulary


def test_a_name_tells_the_size_where_no_file_does() -> None:
    assert of_reference("nobody/Thing-13B").weights == published()["Llama-2-13B"].weights
