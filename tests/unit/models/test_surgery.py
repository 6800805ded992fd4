"""Layer influence, the greedy choice, and the cut itself, on random Llamas and a Qwen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from potstill.errors import ModelError
from potstill.models import surgery
from potstill.models.targets import Target


@pytest.fixture
def model(random_model: Callable[..., Any]) -> Any:
    """Five layers; layer 1 changes nothing at all, and layer 3 very little."""
    made = random_model(spread=0.4, num_hidden_layers=5, tie_word_embeddings=True)
    with torch.no_grad():
        for layer, factor in ((1, 0.0), (3, 0.02)):
            made.model.layers[layer].self_attn.o_proj.weight.mul_(factor)
            made.model.layers[layer].mlp.down_proj.weight.mul_(factor)
    return made


BATCHES = [torch.arange(24).view(2, 12), torch.arange(20, 41).view(1, 21)]


def test_influence_is_one_minus_the_cosine_of_input_and_output(model: Any) -> None:
    influence = surgery.layer_influence(model, BATCHES)
    assert influence[1] == pytest.approx(0, abs=1e-6)
    sums, tokens = torch.zeros(5), 0
    before_norm: list[Any] = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    for ids in BATCHES:
        with torch.no_grad():
            states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
        states = [*states[:-1], before_norm[-1]]  # transformers' last one is already normalised
        for layer in range(5):
            cosine = torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
            sums[layer] += (1 - cosine).sum()
        tokens += ids.numel()
    assert influence == pytest.approx((sums / tokens).tolist(), abs=1e-5)
    assert sorted(surgery.least_influential(influence, 2)) == [1, 3]
    assert surgery.least_influential([0.5, 0.1, 0.1, 0.0], 3) == [3, 1, 2]


def _kl(teacher: Any, student: Any) -> float:
    total, tokens = 0.0, 0
    for ids in BATCHES:
        with torch.no_grad():
            log_p, log_q = (m(ids).logits.double().log_softmax(-1) for m in (teacher, student))
        total += float((log_p.exp() * (log_p - log_q)).sum())
        tokens += ids.numel()
    return total / tokens


def test_greedy_removes_what_raises_the_kl_least_and_measures_it_truly(model: Any) -> None:
    removals = surgery.greedy_drops(model, BATCHES, 3)
    gone: list[int] = []
    for removal in removals:
        tried = {
            layer: _kl(model, surgery.drop_layers(copy.deepcopy(model), [*gone, layer]))
            for layer in set(range(5)) - set(gone)
        }
        assert removal.layer == min(tried, key=lambda layer: tried[layer])
        assert removal.kl == pytest.approx(tried[removal.layer], rel=1e-3, abs=1e-6)
        gone.append(removal.layer)
    assert gone[0] == 1
    assert model.config.num_hidden_layers == 5  # measuring leaves the model as it was


def test_a_later_round_tries_only_the_most_harmless(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = surgery.greedy_drops(model, BATCHES, 2)
    monkeypatch.setattr(surgery, "CANDIDATES", 2)
    assert surgery.greedy_drops(model, BATCHES, 2) == full


def test_the_cut_model_equals_the_layers_that_are_left(model: Any, tmp_path: Path) -> None:
    small = surgery.drop_layers(copy.deepcopy(model), [1, 3])
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]
    ids = BATCHES[0]
    with torch.no_grad():
        near = small(ids).logits, model(ids).logits
        # With a key-value cache, wrong layer numbers would mix the layers up.
        generated = small.generate(ids[:1], max_new_tokens=5, do_sample=False)
        slowly = small.generate(ids[:1], max_new_tokens=5, do_sample=False, use_cache=False)
    torch.testing.assert_close(near[0], near[1], rtol=0.2, atol=0.2)
    assert torch.equal(generated, slowly)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, near[0])


def test_lists_with_one_entry_a_layer_follow(random_model: Callable[..., Any]) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = random_model("qwen3", num_hidden_layers=4, **windows)
    config = model.config
    assert len(set(config.layer_types)) == 2
    expected = [config.layer_types[number] for number in (0, 2, 3)]
    ids = BATCHES[0]
    (removal,) = surgery.greedy_drops(model, [ids], 1)
    without = surgery.drop_layers(copy.deepcopy(model), [removal.layer])
    with torch.no_grad():  # the layers behind it kept their own kind of attention
        log_p, log_q = (m(ids).logits.log_softmax(-1) for m in (model, without))
    kl = float((log_p.exp() * (log_p - log_q)).sum() / ids.numel())
    assert removal.kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
    small = surgery.drop_layers(model, [1])
    assert small.config.layer_types == expected
    with torch.no_grad():
        assert torch.isfinite(small(ids).logits).all()


def test_the_target_decides_how_many_layers_go(model: Any) -> None:
    total = surgery.parameters_of(model)
    target = Target(0.75 * total, "ratio")
    count = surgery.drops_for(model, target)
    small = surgery.drop_layers(copy.deepcopy(model), list(range(count)))
    one_more = surgery.drop_layers(copy.deepcopy(model), list(range(count - 1)))
    assert surgery.parameters_of(small) <= 0.75 * total < surgery.parameters_of(one_more)
    assert surgery.drops_for(model, Target(total, "all")) == 0
    with pytest.raises(ModelError, match="embeddings and one layer"):
        surgery.drops_for(model, Target(0.05 * total, "ratio"))


@pytest.mark.parametrize("layers", [range(5), [7], [-1]])
def test_impossible_cuts_are_refused(model: Any, layers: Any) -> None:
    with pytest.raises(ModelError, match="layers"):
        surgery.drop_layers(model, layers)
    assert len(model.model.layers) == 5


def test_an_unknown_architecture_is_a_clear_error() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    stranger = GPTNeoXForCausalLM(GPTNeoXConfig(num_attention_heads=2, vocab_size=50, **sizes))
    for action in (
        lambda: surgery.layer_influence(stranger, BATCHES),
        lambda: surgery.drop_layers(stranger, [0]),
        lambda: surgery.drops_for(stranger, Target(1, "few")),
    ):
        with pytest.raises(ModelError, match="GPTNeoXForCausalLM is not known"):
            action()


def test_no_calibration_text_is_an_error(model: Any) -> None:
    with pytest.raises(ModelError, match="no calibration text"):
        surgery.layer_influence(model, [])
    with pytest.raises(ModelError, match="no calibration text"):
        surgery.greedy_drops(model, [], 1)
