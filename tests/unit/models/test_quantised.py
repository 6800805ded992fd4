"""8 and 4 bits against plain references, and what a machine without bitsandbytes is told."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.errors import MissingExtraError, ModelError
from potstill.models import quantised
from potstill.models.load import load_model
from potstill.models.surgery import parameters_of

# The sixteen levels of NF4: QLoRA, Dettmers et al. 2023, arXiv:2305.14314, appendix E.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def linear(rows: int, columns: int, seed: int = 0, bias: bool = False) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, bias=bias)


def nearest_levels(weight: Tensor, largest: Tensor) -> Tensor:
    """[blocks, 64] -> each weight's nearest level, in float64."""
    levels = torch.tensor(NF4, dtype=torch.float64)
    scaled = weight.double() / largest.unsqueeze(1)
    return levels[(scaled.unsqueeze(-1) - levels).abs().argmin(-1)] * largest.unsqueeze(1)


def test_nf4_is_the_nearest_of_sixteen_levels_times_the_largest_of_its_block() -> None:
    plain = linear(24, 128)
    weight = plain.weight.detach().clone()
    layer = quantised._nf4(plain, torch.float32)
    blocks = weight.reshape(-1, 64)
    largest = blocks.double().abs().amax(1)
    state = layer.weight.quant_state
    # Double quantisation: the blocks' largest values are rounded to 8 bits about their mean.
    codes = state.state2.code.double()
    rounded = codes[state.absmax.long()] * state.state2.absmax.double() + float(state.offset)
    assert (rounded - largest).abs().max() < 0.02 * largest.max()
    found = quantised.dequantised_weight(layer)
    assert found is not None
    expected = nearest_levels(blocks, largest) / largest.unsqueeze(1) * rounded.unsqueeze(1)
    torch.testing.assert_close(found.double(), expected.view_as(weight), rtol=1e-5, atol=1e-7)


def test_int8_is_what_bitsandbytes_rounds_rows_to() -> None:
    plain = linear(24, 128, bias=True)
    half = plain.weight.detach().half()
    plain.weight.data = half.float()
    layer = quantised.Int8Linear(plain)
    functional = importlib.import_module("bitsandbytes.functional")
    codes, largest, _ = functional.int8_vectorwise_quant(half)
    assert (layer.weight.int() - codes.int()).abs().max() <= 1  # a tie may fall either way
    assert (layer.weight == codes).float().mean() > 0.99
    torch.testing.assert_close(layer.scale * 127, largest, rtol=1e-4, atol=0)
    error = (layer.dequantised() - plain.weight).abs()
    assert (error <= layer.scale.unsqueeze(1) / 2 + 1e-7).all()
    x = torch.randn(5, 128)
    expected = x.double() @ layer.dequantised().double().T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_stays_zero() -> None:
    plain = linear(3, 64)
    plain.weight.data[1] = 0
    assert quantised.Int8Linear(plain).dequantised()[1].abs().sum() == 0
    found = quantised.dequantised_weight(quantised._nf4(plain, torch.float32))
    assert found is not None
    assert found[1].abs().sum() == 0


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_a_quantised_model_is_the_one_with_its_dequantised_weights(
    tiny_folder: Path, precision: Any
) -> None:
    model = load_model(tiny_folder)
    count, before = parameters_of(model), sum(one.nbytes for one in model.parameters())
    ids = torch.arange(3, 19).unsqueeze(0)
    full = model(input_ids=ids).logits.detach()
    quantised.quantise(model, precision, torch.float32)
    assert quantised.is_quantised(model)
    assert parameters_of(model) == count
    embeddings = model.get_input_embeddings().weight.numel()
    size = {"8bit": 1.0, "4bit": 0.5}[precision]
    held = sum(one.nbytes for one in model.parameters())
    assert held < 4 * embeddings + 1.3 * size * (count - embeddings) < before
    assert model.lm_head.weight is model.model.embed_tokens.weight  # the output layer is left
    rounded = model(input_ids=ids).logits.detach()
    model.eval()
    again = model(input_ids=ids).logits.detach()
    assert torch.equal(rounded, again)  # no repacking at evaluation
    apart = float((rounded - full).norm() / full.norm())
    assert 0 < apart < {"8bit": 0.05, "4bit": 0.5}[precision]
    quantised.dequantise(model)
    assert not quantised.is_quantised(model)
    torch.testing.assert_close(model(input_ids=ids).logits, rounded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_gradients_go_through_after_an_evaluation(precision: Any) -> None:
    plain = linear(64, 64)
    made = quantised.Int8Linear(plain) if precision == "8bit" else None
    layer: Any = made or quantised._nf4(plain, torch.float32)
    weight = quantised.dequantised_weight(layer)
    assert weight is not None
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(2, 64))
    layer.train()
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, -1), rtol=1e-4, atol=1e-5)


def test_changing_type_leaves_codes_and_scales(tiny_folder: Path) -> None:
    for precision in ("8bit", "4bit"):
        model = quantised.quantise(load_model(tiny_folder), precision, torch.bfloat16)  # type: ignore[arg-type]
        layer = model.model.layers[0].mlp.up_proj
        before = quantised.dequantised_weight(layer)
        model.to(torch.bfloat16)
        assert torch.equal(quantised.dequantised_weight(layer), before)  # type: ignore[arg-type]
        assert model(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.bfloat16


def test_without_bitsandbytes_there_is_one_error_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    real = importlib.import_module

    def missing(name: str, *more: Any) -> Any:
        if name == "bitsandbytes":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more)

    model = load_model(tiny_folder)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r'4bit weights .*potstill\[quantised\]"'):
        quantised.quantise(model, "4bit", torch.float32)
    assert not quantised.is_quantised(model)
    quantised.quantise(model, "8bit", torch.float32)  # needs nothing


@pytest.mark.parametrize("way", ["raises", "wrong"])
def test_a_machine_that_cannot_do_it_says_so(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    functional = importlib.import_module("bitsandbytes.functional")

    def broken(packed: Tensor, state: Any) -> Tensor:
        if way == "raises":
            raise RuntimeError("no kernel image is available")
        return torch.full((2, 64), math.nan)

    monkeypatch.setattr(functional, "dequantize_4bit", broken)
    with pytest.raises(ModelError, match=r"cannot do on this machine \(cpu\).*8bit or full"):
        quantised.check("4bit", "distill.adapter: qlora")


def test_importing_training_says_nothing_of_kernels() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import potstill.models.quantised, bitsandbytes"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gemm_4bit_forward" not in done.stderr + done.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a machine with an NVIDIA GPU runs it")
@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_a_gpu_computes_what_a_cpu_does(tiny_folder: Path, precision: Any) -> None:
    ids = torch.arange(3, 19).unsqueeze(0)
    here = quantised.quantise(load_model(tiny_folder), precision, torch.float32)
    there = quantised.quantise(load_model(tiny_folder), precision, torch.float32, "cuda").to("cuda")
    found = there(input_ids=ids.cuda()).logits.cpu()
    torch.testing.assert_close(found, here(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
