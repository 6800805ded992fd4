"""A model read layer by layer says bit for bit what the resident one says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.errors import ModelError
from potstill.models import surgery
from potstill.models.body import body_of
from potstill.models.cast import cast
from potstill.models.load import load_model
from potstill.models.skeleton import load_without
from potstill.models.streamed import StreamedModel
from potstill.models.weights import WeightFiles

Make = Callable[..., Path]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"bos_token_id": 1, "eos_token_id": 1},
    "qwen3": {},
    "gemma3_text": {
        "sliding_window": 5,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"],
    },
    "gemma2": {"sliding_window": 5},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}


@pytest.fixture
def make(tmp_path: Path, random_model: Callable[..., Any]) -> Make:
    """make(family, dtype=fp32, shard=None, **config) -> a random model in a folder."""

    def made(
        family: str, dtype: torch.dtype = torch.float32, shard: str | None = None, **others: Any
    ) -> Path:
        sizes = {"vocab_size": 96, "num_hidden_layers": 4, "max_position_embeddings": 128}
        fields = sizes | FAMILIES[family] | others
        model = random_model(family, seed=3, spread=0.2, norms=0.2, **fields)
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        return folder

    return made


def _ids() -> torch.Tensor:
    return torch.randint(0, 96, (3, 17), generator=torch.Generator().manual_seed(1))


def _layer_by_layer(streamed: StreamedModel, inputs: dict[str, Any]) -> torch.Tensor:
    states = None
    for number in range(len(streamed.layers)):
        states = streamed.compute(number, inputs, states)
    assert states is not None
    return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_as_resident(make: Make, family: str, tied: bool, dtype: torch.dtype) -> None:
    folder = make(family, torch.bfloat16, shard="20KB", tie_word_embeddings=tied)
    assert len(list(folder.glob("*.safetensors"))) > 2
    resident, streamed = cast(load_model(folder), dtype), StreamedModel(folder, dtype)
    inputs = {"input_ids": _ids(), "use_cache": False}
    with torch.no_grad():
        states = body_of(resident)(**inputs).last_hidden_state
        logits = resident(**inputs).logits
        assert torch.equal(_layer_by_layer(streamed, inputs), states)
        assert torch.equal(streamed.model(**inputs).logits, logits)
    before = None
    for number in range(len(streamed.layers) - 1):
        before = streamed.compute(number, inputs, before)
    assert torch.equal(streamed.logits(inputs, before), logits)
    buffers = dict(resident.named_buffers())
    assert buffers.keys() == dict(streamed.model.named_buffers()).keys()
    for name, buffer in streamed.model.named_buffers():
        assert torch.equal(buffer, buffers[name])
        assert buffer.dtype == buffers[name].dtype


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64])
def test_files_of_every_type_are_rounded_as_loading_rounds_them(
    make: Make, stored: torch.dtype
) -> None:
    folder = make("llama", stored)
    if stored == torch.float64:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        made = torch.Generator().manual_seed(2)
        noise = {n: 1e-9 * torch.randn(t.shape, generator=made) for n, t in tensors.items()}
        save_file({n: t.double() + noise[n] for n, t in tensors.items()}, path, {"format": "pt"})
    inputs = {"input_ids": _ids(), "use_cache": False}
    resident = cast(load_model(folder), torch.bfloat16)
    with torch.no_grad():
        wanted = body_of(resident)(**inputs).last_hidden_state
    assert torch.equal(_layer_by_layer(StreamedModel(folder, torch.bfloat16), inputs), wanted)


def test_only_the_running_layer_has_weights(make: Make) -> None:
    streamed = StreamedModel(make("llama", tie_word_embeddings=False), torch.float32)

    def there() -> list[int]:
        return [
            number
            for number, layer in enumerate(streamed.layers)
            if all(one.device.type == "cpu" for one in layer.parameters())
        ]

    assert there() == []
    with streamed.hold(2):
        assert there() == [2]
        first = dict(streamed.layers[2].named_parameters())
        places = {name: one.data_ptr() for name, one in first.items()}
    with streamed.hold(3):
        assert there() == [3]
        for name, one in streamed.layers[3].named_parameters():
            assert one.data_ptr() == places[name]
    assert there() == []
    assert streamed.model.get_input_embeddings().weight.device.type == "meta"


def test_influence_is_measured_as_on_the_resident_model(make: Make) -> None:
    folder = make("qwen3")
    streamed = StreamedModel(folder, torch.float32)
    batches = [_ids()[:1], _ids()[1:2, :9]]
    wanted = surgery.layer_influence(load_model(folder), batches)
    assert surgery.layer_influence(streamed.model, batches) == wanted


def test_shortened_holds_every_kind_of_layer(make: Make) -> None:
    for family, count in (("llama", 2), ("gemma3_text", 4)):
        streamed = StreamedModel(make(family), torch.float32)
        with streamed.shortened() as model:
            assert len(model.model.layers) == count
            model(input_ids=_ids(), use_cache=False)
        assert len(streamed.model.model.layers) == len(streamed.layers)


def test_embeddings_read_the_rows_that_are_asked_for(make: Make) -> None:
    folder = make("gemma3_text", torch.bfloat16, tie_word_embeddings=False)
    streamed, resident = StreamedModel(folder, torch.float32), load_model(folder)
    ids = torch.tensor([[0, 5, 5, 95], [1, 0, 7, 7]])  # padding's row among them
    found = streamed.model.get_input_embeddings()(ids)
    assert torch.equal(found, resident.get_input_embeddings()(ids))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_load_without_is_loading_and_dropping(
    make: Make, tmp_path: Path, family: str, tied: bool
) -> None:
    folder = make(family, shard="20KB", tie_word_embeddings=tied)
    wanted = surgery.drop_layers(load_model(folder), [1, 2])
    found = load_without(folder, [1, 2])
    for name, model in (("wanted", wanted), ("found", found)):
        model.save_pretrained(tmp_path / name)
    files = [sorted(one.iterdir()) for one in (tmp_path / "wanted", tmp_path / "found")]
    for one, other in zip(*files, strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
    assert found.training == wanted.training
    assert all(one.requires_grad for one in found.parameters())
    ids = _ids()
    assert torch.equal(found(input_ids=ids).logits, wanted(input_ids=ids).logits)


def test_a_head_that_is_stored_though_the_config_ties(make: Make) -> None:
    for noise, tied in ((0.0, True), (0.1, False)):
        folder = make("llama", tie_word_embeddings=True)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() + noise
        save_file(tensors, path, {"format": "pt"})
        streamed = StreamedModel(folder, torch.float32)
        table = streamed.model.get_input_embeddings().weight
        assert (streamed.model.get_output_embeddings().weight is table) == tied
        inputs = {"input_ids": _ids(), "use_cache": False}
        with torch.no_grad():
            wanted = load_model(folder)(**inputs).logits
            assert torch.equal(streamed.model(**inputs).logits, wanted)


def test_missing_tensors_shards_and_shapes_are_errors(make: Make) -> None:
    folder = make("llama", shard="20KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        WeightFiles(folder, None)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        StreamedModel(folder, torch.float32)
    shard.write_bytes(content)
    names = json.loads(index.read_text())["weight_map"]
    gone = next(name for name, file in names.items() if "layers" in name and file == shard.name)
    save_file({n: t for n, t in load_file(shard).items() if n != gone}, shard, {"format": "pt"})
    with pytest.raises(ModelError, match=f"missing {gone}"):
        StreamedModel(folder, torch.float32)
    with pytest.raises(ModelError, match=f"missing {gone}"):
        load_without(folder, [])
    save_file({**load_file(shard), gone: torch.zeros(3, 3)}, shard, {"format": "pt"})
    with pytest.raises(ModelError, match=f"mismatched {gone}"):
        StreamedModel(folder, torch.float32)


def test_a_decoder_without_its_prefix(make: Make, tmp_path: Path) -> None:
    folder = make("llama", tie_word_embeddings=True)
    path = folder / "model.safetensors"
    bare = {n.removeprefix("model."): t for n, t in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    inputs = {"input_ids": _ids(), "use_cache": False}
    with torch.no_grad():
        wanted = load_model(folder).model(**inputs).last_hidden_state
    assert torch.equal(_layer_by_layer(StreamedModel(folder, torch.float32), inputs), wanted)


def test_weights_in_another_form_are_refused(make: Make) -> None:
    folder = make("llama")
    path = folder / "model.safetensors"
    strange = {n.replace("q_proj", "query"): t for n, t in load_file(path).items()}
    save_file(strange, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"another form .*query.weight is there, .*q_proj"):
        StreamedModel(folder, torch.float32)


def test_layers_that_share_keys_and_values_are_refused(make: Make) -> None:
    folder = make("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_kv_shared_layers": 2}))
    with pytest.raises(ModelError, match="cannot be computed one by one"):
        StreamedModel(folder, torch.float32)


def test_quantised_weights_are_refused(make: Make) -> None:
    folder = make("llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised"):
        StreamedModel(folder, torch.float32)


def test_what_has_more_than_layers_is_refused(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    random_model("phi").save_pretrained(tmp_path / "phi")
    with pytest.raises(ModelError, match=r"final_layernorm.*cannot be read layer by layer"):
        StreamedModel(tmp_path / "phi", torch.float32)
