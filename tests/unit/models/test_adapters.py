"""Each kind of adapter against its formula in float64, merged without a change, kept and mixed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import ModelError, PotstillError, UsageError
from potstill.models import adapters, quantised
from potstill.models.adapter_config import AdapterKind, LoraConfig
from potstill.models.adapter_files import read_adapter
from potstill.models.adapter_sets import AdapterSet
from potstill.models.load import load_model

IDS = [3, 40, 7, 99, 120, 5, 64, 31]
LAYER = "model.layers.1.mlp.up_proj"
Make = Callable[..., Path]


def attached(folder: Path, kind: AdapterKind, seed: int = 0, **fields: Any) -> Any:
    """A model with an adapter that has learnt something: its matrices are drawn by lot."""
    model = adapters.as_base(load_model(folder), kind, remember=True)
    model = adapters.attach(model, kind, LoraConfig(rank=4, **fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> Make:
    """saved(name, kind, seed, ...) -> an adapter's folder."""

    def make(name: str, kind: AdapterKind = "lora", seed: int = 0, **fields: Any) -> Path:
        folder = tmp_path / name
        adapters.save_adapter(attached(tiny_folder, kind, seed, **fields), folder, kind, "tiny")
        return folder

    return make


def says(model: Any) -> Tensor:
    return adapters.logits_of(model, IDS)


def plain_update(folder: Path, base: Tensor, scaling: float, layer: str = LAYER) -> Tensor:
    """W_i - W of a saved adapter by the papers' formulas, in float64."""
    state = load_file(folder / adapters.WEIGHTS)
    first, second, *lengths = (
        state[key].double()
        for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        if (key := f"base_model.model.{layer}.{part}") in state
    )
    update = scaling * second @ first
    if not lengths:
        return update
    changed = base + update
    return lengths[0][:, None] * changed / changed.norm(dim=1, keepdim=True) - base


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_a_merged_adapter_is_its_formula_and_says_the_same(
    tiny_folder: Path, tmp_path: Path, kind: AdapterKind, stabilised: bool
) -> None:
    fields = {"alpha": 6.0, "rank_stabilised": stabilised}
    model = attached(tiny_folder, kind, **fields)
    adapters.save_adapter(model, tmp_path / "a", kind, "tiny")
    base = adapters.as_base(load_model(tiny_folder), kind)
    before = says(model)
    assert (before - says(base)).abs().max() > 1e-2 * before.abs().max()
    merged = adapters.merge(model, IDS)
    torch.testing.assert_close(says(merged), before, rtol=1e-3, atol=1e-3)
    weight = quantised.dequantise(base).get_submodule(LAYER).weight.detach().double()
    scaling = 6.0 / (2.0 if stabilised else 4.0)
    expected = weight + plain_update(tmp_path / "a", weight, scaling)
    found = merged.get_submodule(LAYER).weight
    assert type(merged.get_submodule(LAYER)) is torch.nn.Linear
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 64), alpha=st.floats(0.01, 1e4), stabilised=st.booleans())
def test_the_scale_of_an_update(rank: int, alpha: float, stabilised: bool) -> None:
    import peft

    fields = LoraConfig(rank=rank, alpha=alpha, rank_stabilised=stabilised)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=stabilised, target_modules=["0"])
    layer = peft.get_peft_model(model, config).base_model.model[0]
    expected = alpha / math.sqrt(rank) if stabilised else alpha / rank
    assert fields.scaling == pytest.approx(expected, rel=1e-12)
    assert layer.scaling["default"] == pytest.approx(expected, rel=1e-12)
    if stabilised:  # twice the rank: the scale falls by the root of two alone
        more = LoraConfig(rank=2 * rank, alpha=alpha, rank_stabilised=True)
        assert more.scaling * math.sqrt(2) == pytest.approx(fields.scaling)


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        ("lora", "kaiming"),
        ("lora", "orthogonal"),
        ("dora", "gaussian"),
        ("dora", "orthogonal"),
        ("qlora", "kaiming"),
        ("qlora", "gaussian"),
    ],
)
def test_a_fresh_adapter_changes_nothing_and_only_it_learns(
    tiny_folder: Path, kind: AdapterKind, init: Any
) -> None:
    base = adapters.as_base(load_model(tiny_folder), kind)
    before = says(base)
    model = adapters.attach(base, kind, LoraConfig(init=init))
    torch.testing.assert_close(says(model.eval()), before, rtol=1e-4, atol=1e-4)
    learning = [name for name, one in model.named_parameters() if one.requires_grad]
    assert len(learning) == (3 if kind == "dora" else 2) * 7 * 2
    assert all("lora_" in name for name in learning)
    assert all(one.dtype == torch.float32 for one in model.parameters() if one.requires_grad)


def test_every_linear_layer_is_found_in_any_family_and_never_the_output_layer() -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, Phi3Config, Qwen2Config

    size = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    cases = [
        (GPTNeoXConfig(**size), 4),  # its output layer is called embed_out, its body gpt_neox
        (Phi3Config(**size, num_key_value_heads=2), 4),
        (Qwen2Config(**size, num_key_value_heads=1, tie_word_embeddings=False), 7),
    ]
    for config, expected in cases:
        model = AutoModelForCausalLM.from_config(config)
        made = adapters.attach(model, "lora", LoraConfig(rank=2))
        changed = {name.rpartition(".lora_A")[0] for name, _ in made.named_parameters()}
        changed.discard("")
        assert len(changed) == 2 * expected, config.model_type
        output = made.get_base_model().get_output_embeddings()
        assert type(output) is torch.nn.Linear


def test_unknown_layers_are_one_error_that_names_near_ones(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    with pytest.raises(ModelError, match=r"named query_proj, lm_head .*Did you mean .*q_proj"):
        adapters.check_targets(
            model, LoraConfig(target_modules=("query_proj", "lm_head", "up_proj"))
        )
    adapters.check_targets(model, LoraConfig(target_modules=("mlp.up_proj", "q_proj")))


def test_a_merge_that_changes_what_is_said_is_refused() -> None:
    before = torch.tensor([[1.0, -2.0]])
    adapters.require_same(before, before + 1e-4, "Merging")
    for after in (before + 0.01, before * math.nan):
        with pytest.raises(ModelError, match=r"Merging changed the model's logits by"):
            adapters.require_same(before, after, "Merging")


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_switching_is_the_same_as_loading_alone(
    tiny_folder: Path, saved: Make, kind: AdapterKind
) -> None:
    folders = {name: saved(name, kind, seed) for seed, name in enumerate("abc")}
    both = AdapterSet(tiny_folder, folders)
    assert torch.equal(says(both.model), says(both.use("a")))
    found = {name: says(both.use(name)) for name in ("c", "a", "b")}
    for name, folder in folders.items():
        alone = AdapterSet(tiny_folder, {"only": folder})
        assert torch.equal(says(alone.use("only")), found[name])
        if kind != "qlora":  # there the base is held dequantised: the same up to rounding
            assert torch.equal(found[name], says(attached(tiny_folder, kind, "abc".index(name))))
    assert not torch.equal(found["a"], found["b"])
    base = quantised.dequantise(adapters.as_base(load_model(tiny_folder), kind))
    assert torch.equal(says(both.use(None)), says(base))
    assert torch.equal(says(both.use("b")), found["b"])


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_weighted_merge_is_the_weighted_sum(
    tiny_folder: Path, saved: Make, kind: AdapterKind, stabilised: bool
) -> None:
    folders = {
        "a": saved("a", kind, 1, rank_stabilised=stabilised),
        "b": saved("b", kind, 2, rank_stabilised=stabilised, target_modules=("up_proj", "q_proj")),
    }
    weights = {"a": 0.7, "b": -0.4}
    base = load_model(tiny_folder).get_submodule(LAYER).weight.detach().double()
    scaling = 32.0 / (2.0 if stabilised else 4.0)
    expected = base + sum(
        weight * plain_update(folders[name], base, scaling) for name, weight in weights.items()
    )
    these = AdapterSet(tiny_folder, folders)
    if kind == "dora":
        with pytest.raises(ModelError, match=r"DoRA adapters cannot be mixed.*adapters merge"):
            these.combine("both", weights)
        said = None
    else:
        said = says(these.combine("both", weights))
        assert torch.equal(says(these.use("both")), said)
    merged = these.merged(weights)
    found = merged.get_submodule(LAYER).weight.detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if said is not None:
        torch.testing.assert_close(says(merged), said, rtol=1e-3, atol=1e-3)
    left = merged.get_submodule("model.layers.1.self_attn.v_proj").weight.detach().double()
    only_a = load_model(tiny_folder).get_submodule("model.layers.1.self_attn.v_proj").weight
    update = plain_update(folders["a"], only_a.double(), scaling, "model.layers.1.self_attn.v_proj")
    torch.testing.assert_close(left, only_a.double() + 0.7 * update, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_another_base_is_refused_before_its_weights_are_loaded(
    tiny_folder: Path,
    tmp_path: Path,
    saved: Make,
    make_student: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    ours = saved("ours")
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", never)
    other = make_student(tmp_path / "other", seed=9)
    with pytest.raises(ModelError, match=r"another base: it was trained on weights .*is tiny"):
        AdapterSet(other, {"a": ours})
    shallow = make_student(tmp_path / "shallow", layers=1)
    monkeypatch.setattr("potstill.models.adapter_sets.load_model", never)
    with pytest.raises(ModelError, match=r"changes model\.layers\.1.*does not have"):
        AdapterSet(shallow, {"a": ours})
    state = load_file(ours / adapters.WEIGHTS)
    name = f"base_model.model.{LAYER}.lora_B.weight"
    state[name] = torch.cat([state[name], state[name]])
    save_file(state, ours / adapters.WEIGHTS)
    with pytest.raises(ModelError, match=r"up_proj is 256 x 64, the base's 128 x 64"):
        AdapterSet(tiny_folder, {"a": ours})


def test_a_foreign_adapter_without_a_digest_is_judged_by_its_shapes(
    tiny_folder: Path, saved: Make
) -> None:
    folder = saved("foreign")
    (folder / adapters.BASE).unlink()
    these = AdapterSet(tiny_folder, {"a": folder})
    assert torch.equal(says(these.model), says(attached(tiny_folder, "lora")))


def test_what_is_no_adapter_is_said_to_be_none(tmp_path: Path, saved: Make) -> None:
    with pytest.raises(ModelError, match=r"no adapter: it has no adapter_config\.json"):
        read_adapter(tmp_path)
    folder = saved("a")
    config = json.loads((folder / adapters.CONFIG).read_text())
    for change, words in (
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
    ):
        (folder / adapters.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=words):
            read_adapter(folder)
    (folder / adapters.CONFIG).write_text(json.dumps(config))
    whole = (folder / adapters.WEIGHTS).read_bytes()
    (folder / adapters.WEIGHTS).write_bytes(whole[:-40])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        read_adapter(folder)
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle files"):
        read_adapter(folder)


def test_adapters_for_full_and_for_4_bit_weights_do_not_share_a_base(
    tiny_folder: Path, saved: Make
) -> None:
    with pytest.raises(ModelError, match="no base is right for all"):
        AdapterSet(tiny_folder, {"a": saved("a"), "b": saved("b", "qlora")})


def test_a_digest_is_that_of_a_copy_in_bf16_and_of_no_other(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    digest = adapters.weights_digest(model)
    assert adapters.weights_digest(load_model(tiny_folder, torch.bfloat16)) == digest
    assert adapters.weights_digest(attached(tiny_folder, "lora").get_base_model()) == digest
    with torch.no_grad():
        model.model.norm.weight[0] += 0.5
    assert adapters.weights_digest(model) != digest
    with pytest.raises(ModelError, match="quantised"):
        adapters.weights_digest(quantised.quantise(model, "8bit", torch.float32))


def test_the_command_line_shows_and_merges(tiny_folder: Path, tmp_path: Path, saved: Make) -> None:
    one, two = saved("one", seed=1), saved("two", seed=2)
    run = CliRunner().invoke
    shown = run(app, ["adapters", "show", str(one), "--json"], catch_exceptions=False)
    said = json.loads(shown.stdout)
    assert (said["kind"], said["rank"], said["scaling"], said["base"]) == ("lora", 4, 8.0, "tiny")
    assert said["layers"] == 14
    assert "up_proj" in run(app, ["adapters", "show", str(one)], catch_exceptions=False).stdout
    output = tmp_path / "merged"
    merge = ["adapters", "merge", str(tiny_folder), f"{one}:0.5", str(two), "-o", str(output)]
    assert run(app, merge, catch_exceptions=False).stdout == f"{output}\n"
    expected = AdapterSet(tiny_folder, {"a": one, "b": two}).merged({"a": 0.5, "b": 1.0})
    found = load_model(output).get_submodule(LAYER).weight
    torch.testing.assert_close(
        found, expected.get_submodule(LAYER).weight.to(torch.bfloat16).float(), rtol=0, atol=0
    )
    assert (output / "tokenizer.json").exists()
    for arguments, kind in ((merge, PotstillError), ([*merge[:3], f"{one}:much"], UsageError)):
        failed = run(
            app,
            [*arguments[:-2], "-o", str(output)]
            if arguments is merge
            else [*arguments, "-o", str(tmp_path / "new")],
        )
        assert isinstance(failed.exception, kind)
    alone = ["adapters", "merge", str(tiny_folder), str(one), "-o", str(tmp_path / "alone")]
    assert run(app, alone, catch_exceptions=False).exit_code == 0
