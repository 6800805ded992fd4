"""Output layers of different families give the logits that their own models give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill.errors import ModelError
from potstill.models.body import body_of
from potstill.models.output import output_layer

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
}


def models() -> dict[str, Any]:
    """One of each way in which hidden states become logits."""
    import transformers as t

    return {
        "tied": t.LlamaForCausalLM(t.LlamaConfig(**SMALL, tie_word_embeddings=True)),
        "untied": t.LlamaForCausalLM(t.LlamaConfig(**SMALL, tie_word_embeddings=False)),
        "capped": t.Gemma2ForCausalLM(t.Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
        "multiplied": t.CohereForCausalLM(t.CohereConfig(**SMALL, logit_scale=0.25)),
        "divided": t.GraniteForCausalLM(t.GraniteConfig(**SMALL, logits_scaling=4.0)),
        "biased": t.PhiForCausalLM(t.PhiConfig(**{k: SMALL[k] for k in SMALL if k != "head_dim"})),
    }


@pytest.mark.parametrize("name", list(models()))
def test_the_logits_are_the_models_own(name: str) -> None:
    torch.manual_seed(3)
    model = models()[name].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
        ids = torch.arange(12).unsqueeze(0)
        expected = model(input_ids=ids).logits
        states = model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(output_layer(model).logits(states), expected)


def test_known_values_of_a_cap_and_a_scale() -> None:
    model = models()["capped"]
    layer = output_layer(model)
    assert layer.softcap == 2.0
    assert layer.shape(torch.tensor([0.0, 2.0])).tolist() == pytest.approx([0.0, 1.5231883])
    assert output_layer(models()["multiplied"]).scale == 0.25
    assert output_layer(models()["divided"]).scale == 0.25
    assert layer.words == 50
    assert body_of(model) is model.model


def test_a_model_without_an_output_weight_is_refused() -> None:
    model = models()["tied"]
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(ModelError, match="no weight of its own"):
        output_layer(model)
