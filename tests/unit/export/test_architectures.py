"""Every architecture that is promised, from a random model through the converter and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.export.blocks import block_errors
from potstill.export.gguf import convert, quantize
from potstill.export.parity import Row, score_files
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model
from potstill.models.tokens import check_chat_template, token_parity
from potstill.records import Turn

ROW = Row("r", [], 1, (Turn(role="user", content="q"),), ("yes",), "yes")
# Rows of 256 numbers, so that the k-quantisations really are what they are called.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 256,
}
GEMMA_2 = {"query_pre_attn_scalar": 64, "sliding_window": 16}
GPT_2 = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}
CASES = {
    "llama": ("words", WIDE),
    "llama-pieces": ("pieces", WIDE),
    "qwen2": ("words", WIDE),
    "qwen3": ("words", WIDE),
    "gpt2": ("words", GPT_2),
    "phi3": ("pieces", {**WIDE, "original_max_position_embeddings": 256}),
    "gemma": ("pieces", WIDE),
    "gemma2": ("pieces", {**WIDE, **GEMMA_2}),
    # Every sixth layer sees all tokens; llama.cpp cannot run a model that has none.
    "gemma3_text": ("pieces", {**WIDE, **GEMMA_2, "num_hidden_layers": 6}),
}


@pytest.fixture(scope="session")
def exportable(
    tmp_path_factory: pytest.TempPathFactory,
    random_model: Callable[..., Any],
    make_pieces: Callable[..., Any],
    tiny_folder: Path,
) -> Callable[[str], Path]:
    """exportable(case) -> the folder of a random model of that architecture with a tokenizer."""

    def make(case: str) -> Path:
        kind, fields = CASES[case]
        tokenizer = load_tokenizer(tiny_folder) if kind == "words" else make_pieces()
        model = random_model(
            case.partition("-")[0],
            spread=0.12,
            norms=0.1,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **fields,
        )
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):  # GPT-2 calls them ln_1
                torch.nn.init.normal_(module.weight, 1.0, 0.1)
        folder = tmp_path_factory.mktemp(case) / "model"
        save_model(model, tokenizer, folder)
        return folder

    return make


# One with whole words and one with pieces in the fast tier; the others are converted alike.
@pytest.mark.parametrize(
    "case",
    [
        one if one in ("qwen2", "gemma") else pytest.param(one, marks=pytest.mark.whole)
        for one in CASES
    ],
)
def test_an_architecture_goes_through_the_converter_and_the_gate(
    case: str, exportable: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = exportable(case)
    tokenizer, model = load_tokenizer(folder), load_model(folder, "float32")
    files = {kind: tmp_path / f"{kind}.gguf" for kind in ("f32", "f16", "q8_0", "q4_k_m")}
    for kind, path in files.items():
        if kind in ("f32", "f16"):
            convert(folder, path, tokenizer, "student", kind)
        else:
            quantize(files["f16"], path, kind, 1)
    token_parity(tokenizer, files["f16"]).require(case)
    check_chat_template(tokenizer, files["f16"])
    torch.manual_seed(3)
    size = len(tokenizer)
    rows = [replace(ROW, id=str(n), ids=torch.randint(7, size, (40,)).tolist()) for n in range(2)]
    sums = score_files(files, model, None, rows, size, 1)
    kl = {kind: mean(sums[kind], "kl_student") for kind in files}
    agreement = {kind: mean(sums[kind], "agree_student") for kind in files}
    assert kl["f32"] < 1e-4
    assert kl["f16"] < 1e-3
    assert kl["f16"] < kl["q8_0"] < kl["q4_k_m"]
    assert agreement["f16"] >= 0.98
    assert agreement["q8_0"] >= 0.8
    for kind in ("q8_0", "q4_k_m"):
        assert block_errors(files["f16"], files[kind])


def mean(sums: list[dict[str, float]], name: str) -> float:
    return sum(one[name] for one in sums) / sum(one["tokens"] for one in sums)
