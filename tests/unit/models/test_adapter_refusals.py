"""What cannot be an adapter's base, file or name is said in one line, before weights are loaded."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from potstill.errors import ModelError, PotstillError
from potstill.models import adapter_sets, adapters, quantised
from potstill.models.adapter_config import AdapterKind, LoraConfig
from potstill.models.adapter_files import read_adapter
from potstill.models.adapter_sets import AdapterSet, merge_folders
from potstill.models.load import load_model


def saved(base: Path, folder: Path, kind: AdapterKind = "lora") -> Path:
    model = adapters.attach(adapters.as_base(load_model(base), kind, remember=True), kind, LORA)
    adapters.save_adapter(model, folder, kind, None)
    return folder


LORA = LoraConfig(rank=4)


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    return saved(tiny_folder, tmp_path / "adapter")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(adapter_sets, "load_model", never)


@pytest.fixture
def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    )


def test_a_base_that_is_no_causal_model_is_refused(
    adapter: Path, tmp_path: Path, no_weights: None
) -> None:
    base = tmp_path / "t5"
    T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2).save_pretrained(base)
    (base / "model.safetensors").write_bytes((adapter / adapters.WEIGHTS).read_bytes())
    with pytest.raises(
        ModelError, match="cannot be loaded: ValueError: Unrecognized configuration class"
    ):
        AdapterSet(base, {"a": adapter})


def test_layers_with_transposed_weights_take_no_adapters_and_no_fewer_bits(
    gpt2: Any, adapter: Path
) -> None:
    words = "GPT2LMHeadModel is not made of linear layers"
    with pytest.raises(ModelError, match=words):
        adapters.check_targets(gpt2, LORA)
    with pytest.raises(ModelError, match=words):
        quantised.quantise(gpt2, "8bit", torch.float32)
    with pytest.raises(ModelError, match=words):
        AdapterSet(gpt2, {"a": adapter})


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (adapters.CONFIG, {"fan_in_fan_out": True}, "has fan_in_fan_out"),
        (adapters.CONFIG, {"r": None}, "has r: None, which is no positive number"),
        (adapters.CONFIG, {"lora_alpha": "many"}, "has lora_alpha: many"),
        (adapters.CONFIG, {"r": 0}, "has r: 0"),
        (adapters.CONFIG, None, r"adapter_config\.json holds no JSON object"),
        (adapters.BASE, None, r"base\.json holds no JSON object"),
        (adapters.BASE, {"base_precision": "3bit"}, "base_precision: 3bit, which is unknown"),
        (adapters.BASE, {"base_digest": 7}, "base_digest: 7, which is no digest"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(
    adapter: Path, file: str, change: dict[str, Any] | None, words: str
) -> None:
    path = adapter / file
    known = json.loads(path.read_text())
    path.write_text(json.dumps([] if change is None else known | change))
    with pytest.raises(ModelError, match=words):
        read_adapter(adapter)


@pytest.mark.parametrize("name", ["v1.2", "", "train"])
def test_a_name_that_cannot_be_is_refused(
    tiny_folder: Path, adapter: Path, name: str, no_weights: None
) -> None:
    with pytest.raises(ModelError, match=f"cannot be named '{name}'"):
        AdapterSet(tiny_folder, {name: adapter})


def test_a_mixture_has_a_name_that_can_be(tiny_folder: Path, adapter: Path) -> None:
    these = AdapterSet(tiny_folder, {"a": adapter})
    with pytest.raises(ModelError, match=r"cannot be named 'a\.b'"):
        these.combine("a.b", {"a": 1.0})


def test_what_a_machine_cannot_do_is_said_before_weights_are_loaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None
) -> None:
    qlora = saved(tiny_folder, tmp_path / "qlora", "qlora")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    functional = importlib.import_module("bitsandbytes.functional")
    monkeypatch.setattr(functional, "dequantize_4bit", broken)
    with pytest.raises(ModelError, match=r"base of a QLoRA adapter needs 4-bit") as caught:
        AdapterSet(tiny_folder, {"a": qlora})
    assert "distill." not in str(caught.value)


def test_a_base_without_a_tokenizer_is_refused_before_weights_are_loaded(
    tiny_folder: Path, adapter: Path, tmp_path: Path, no_weights: None
) -> None:
    base = tmp_path / "bare"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(PotstillError, match=r"tokenizer"):
        merge_folders(base, {adapter: 1.0}, tmp_path / "out", "some text")
