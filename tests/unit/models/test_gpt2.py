"""GPT-2 calls its parts by other names, has learned positions, and hands arguments on by place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.errors import ModelError
from potstill.models import surgery
from potstill.models.body import body_of, layers_of, norm_of, prefixes
from potstill.models.load import load_model
from potstill.models.size import configured_parameters, longest_text
from potstill.models.skeleton import load_without, outline
from potstill.models.targets import Target

IDS = [torch.arange(24).view(2, 12), torch.arange(20, 41).view(1, 21)]
SIZES = {"num_hidden_layers": 5, "max_position_embeddings": 64, "bos_token_id": 1}


@pytest.fixture
def model(random_model: Callable[..., Any]) -> Any:
    """Five layers; layer 1 changes nothing at all, and layer 3 very little."""
    made = random_model("gpt2", spread=0.3, eos_token_id=1, **SIZES)
    with torch.no_grad():
        for number, factor in ((1, 0.0), (3, 0.02)):
            layer = made.transformer.h[number]
            for part in (layer.attn.c_proj, layer.mlp.c_proj):
                part.weight.mul_(factor)
                part.bias.mul_(factor)
    return made


def _kl(teacher: Any, student: Any) -> float:
    total, tokens = 0.0, 0
    for ids in IDS:
        with torch.no_grad():
            log_p, log_q = (m(ids).logits.double().log_softmax(-1) for m in (teacher, student))
        total += float((log_p.exp() * (log_p - log_q)).sum())
        tokens += ids.numel()
    return total / tokens


def test_its_parts_are_found(model: Any) -> None:
    body = body_of(model)
    assert body is model.transformer
    assert layers_of(body) is body.h
    assert norm_of(body) is body.ln_f
    assert prefixes(model) == ("transformer.h.", "transformer.ln_f.")


def test_the_layers_that_matter_least_go_first_and_their_loss_is_true(model: Any) -> None:
    influence = surgery.layer_influence(model, IDS)
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert sorted(surgery.least_influential(influence, 2)) == [1, 3]
    removals = surgery.greedy_drops(model, IDS, 3)
    assert removals[0].layer == 1
    gone: list[int] = []
    for removal in removals:
        gone.append(removal.layer)
        measured = _kl(model, surgery.drop_layers(copy.deepcopy(model), gone))
        assert removal.kl == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_every_second_layer_of_it_is_a_gpt2_again(model: Any, tmp_path: Path) -> None:
    small = surgery.drop_layers(copy.deepcopy(model), [1, 3])
    assert small.config.n_layer == len(small.transformer.h) == 3
    assert [block.attn.layer_idx for block in small.transformer.h] == [0, 1, 2]
    ids = IDS[0][:1]
    with torch.no_grad():
        logits = small(ids).logits
        asked = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        generated = small.generate(ids, **asked)
        slowly = small.generate(ids, use_cache=False, **asked)
    assert torch.equal(generated, slowly)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
    assert again.lm_head.weight is again.transformer.wte.weight


def test_layers_that_are_dropped_need_not_be_read(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    wanted = surgery.drop_layers(load_model(tmp_path), [0, 3])
    found = load_without(tmp_path, [0, 3])
    assert found.config.n_layer == 3
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_the_target_counts_tied_embeddings_once(model: Any) -> None:
    total = surgery.parameters_of(model)
    count = surgery.drops_for(model, Target(0.6 * total, "ratio"))
    small = surgery.drop_layers(model, list(range(count)))
    assert surgery.parameters_of(small) <= 0.6 * total
    assert surgery.unread_parameters(small) == 0


def test_layers_whose_scale_depends_on_their_number_stay(random_model: Callable[..., Any]) -> None:
    model = random_model("gpt2", eos_token_id=1, scale_attn_by_inverse_layer_idx=True, **SIZES)
    with pytest.raises(ModelError, match="refer to each other by number"):
        surgery.drop_layers(model, [0])


@pytest.mark.parametrize("fields", [{}, {"n_inner": 48}, {"tie_word_embeddings": False}])
def test_its_size_is_known_before_there_are_weights(
    random_model: Callable[..., Any], tmp_path: Path, fields: dict[str, Any]
) -> None:
    model = random_model("gpt2", eos_token_id=1, **SIZES, **fields)
    counted = sum(one.numel() for one in model.parameters())
    assert configured_parameters(model.config.to_dict()) == counted
    model.save_pretrained(tmp_path)
    assert surgery.parameters_of(outline(tmp_path)) == counted
    assert longest_text(tmp_path) == 64


def test_other_families_are_counted_too_or_not_at_all(random_model: Callable[..., Any]) -> None:
    model = random_model("llama")
    counted = sum(one.numel() for one in model.parameters())
    assert configured_parameters(model.config.to_dict()) == counted
    assert configured_parameters({"model_type": "gpt2", "n_embd": 8}) is None
    assert configured_parameters({"model_type": "unheard-of"}) is None
