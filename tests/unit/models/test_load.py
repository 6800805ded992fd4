"""Loading: folders are checked, GGUF files become folders once, and nothing is trusted blindly."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.errors import ModelError
from potstill.models import load, native
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.size import folder_parameters
from potstill.models.skeleton import skeleton
from potstill.models.surgery import parameters_of
from potstill.models.weights import WeightFiles


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_folder_loads_in_evaluation_mode_in_the_wanted_dtype(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), "bfloat16")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert load_model(tiny_folder).dtype == torch.float32


def test_a_gguf_becomes_a_folder_with_the_same_weights_tokens_and_answers(
    tiny_folder: Path, tiny_ggufs: dict[str, Path], own_cache: Path
) -> None:
    folder = model_folder(tiny_ggufs["f16"])
    assert own_cache in folder.parents
    original, loaded = load_model(tiny_folder).state_dict(), load_model(folder).state_dict()
    assert original.keys() == loaded.keys()
    for name, tensor in original.items():
        # bfloat16 numbers of ordinary size are exact in the GGUF's float16
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-7, msg=name)
    ours, own = load_tokenizer(folder), load_tokenizer(tiny_folder)
    text = "\n\n1250 litres <|im_start|> 08:45"
    assert ours(text).input_ids == own(text).input_ids
    assert ours.pad_token == "<|endoftext|>" != ours.eos_token == "<|im_end|>"
    assert ours.chat_template == own.chat_template
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (
        ours.eos_token_id,
        ours.pad_token_id,
    )


def test_the_logits_of_a_loaded_gguf_are_those_of_llamacpp(
    tiny_ggufs: dict[str, Path], own_cache: Path
) -> None:
    ids = list(range(20, 60))
    with native.scorer(tiny_ggufs["f16"], context=64, threads=1) as scorer:
        theirs = torch.from_numpy(scorer.logits(ids, 1))
    with torch.inference_mode():
        ours = load_model(tiny_ggufs["f16"])(torch.tensor([ids[:-1]])).logits[0]
    p, q = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
    assert float(torch.linalg.vecdot(p.exp(), p - q).max()) < 1e-4


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_dequantised_tensors_equal_the_gguf_packages_reference(
    kind: str, tiny_ggufs: dict[str, Path], own_cache: Path
) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    state = load_model(tiny_ggufs[kind]).state_dict()
    tensors = {tensor.name: tensor for tensor in GGUFReader(tiny_ggufs[kind]).tensors}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for theirs, ours in names.items():
        reference = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        np.testing.assert_array_equal(state[ours].numpy(), reference, err_msg=theirs)


def test_a_gguf_is_converted_once_and_checked_again_by_a_new_engine(
    tiny_ggufs: dict[str, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tiny_ggufs["q8_0"])
    weights = (folder / "model.safetensors").stat()
    checked: list[str] = []
    monkeypatch.setattr(load, "_check_against_llamacpp", lambda *_: checked.append("again"))
    assert model_folder(tiny_ggufs["q8_0"]) == folder
    assert checked == []
    monkeypatch.setattr(load, "_engines", lambda: {"xllamacpp": "next"})
    assert model_folder(tiny_ggufs["q8_0"]) == folder
    assert checked == ["again"]
    assert model_folder(tiny_ggufs["q8_0"]) == folder
    assert checked == ["again"]
    assert (folder / "model.safetensors").stat() == weights


def test_a_gguf_whose_tokenizer_differs_from_llamacpp_is_refused_and_not_kept(
    tiny_ggufs: dict[str, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "mend_pre_tokenizer", lambda *_: False)
    with pytest.raises(ModelError, match=r"read .* texts as different tokens"):
        model_folder(tiny_ggufs["f16"])
    assert [entry for entry in (own_cache / "models").iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("keep", [3, 2000, -3000])
def test_a_truncated_gguf_is_one_clear_line(
    keep: int, tiny_ggufs: dict[str, Path], tmp_path: Path, own_cache: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_ggufs["f16"].read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"cut\.gguf is (truncated|not a whole GGUF file)"):
        model_folder(cut)


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(copy)


def test_an_architecture_that_nobody_knows_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llama99"}))
    with pytest.raises(ModelError, match="llama99"):
        load_model(copy)


def test_truncated_safetensors_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model(copy)


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle files"):
        load_model(copy)


def test_weights_that_do_not_fill_the_model_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(copy)


def test_a_shard_that_the_index_names_and_is_not_there_is_refused(copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks model-00001-of-00002"):
        load_model(copy)


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(copy)


def test_of_weights_that_are_there_twice_all_read_those_that_transformers_loads(copy: Path) -> None:
    """The single file, as long as there is one."""
    whole = load_model(copy)
    shards = copy.with_name("shards")
    other = load_model(copy)
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    other.save_pretrained(shards, max_shard_size="20KB")
    for path in [*shards.glob("*.safetensors"), shards / "model.safetensors.index.json"]:
        shutil.copy(path, copy)
    (sorted(copy.glob("model-*.safetensors"))[0]).unlink()  # nobody asks for it
    known = load_model(copy).state_dict()
    assert torch.equal(known["model.norm.weight"], whole.model.norm.weight)
    target = torch.empty_like(known["model.norm.weight"])
    WeightFiles(copy, skeleton(copy)).read({"model.norm.weight": target})
    assert torch.equal(target, whole.model.norm.weight)
    assert folder_parameters(copy) == parameters_of(whole)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run(copy: Path, file: str) -> None:
    """Whether the folder then loads without it or is refused; and nobody is asked at a terminal."""
    mark = copy / "ran"
    (copy / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    settings = json.loads((copy / file).read_text())
    names = ("AutoConfig", "AutoModelForCausalLM")
    settings["auto_map"] = dict.fromkeys(names, "own.Own") | {"AutoTokenizer": ["own.Own"] * 2}
    for strange in (False, True):  # of a kind that transformers knows, and of none
        if strange:
            settings["model_type" if file == "config.json" else "tokenizer_class"] = "Own"
        (copy / file).write_text(json.dumps(settings))
        for opened in (load_model, load_tokenizer):
            with suppress(ModelError):
                opened(copy)
    assert not mark.exists()
