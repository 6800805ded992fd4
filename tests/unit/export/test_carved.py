"""A student whose widths were cut says the same in llama.cpp as in PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from potstill.export.gguf import convert
from potstill.models import native
from potstill.models.importance import measure, shape_of
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model
from potstill.models.width import carve, choose


@pytest.mark.parametrize("hidden", [48, 50])  # 50 is no multiple of 4 heads: saved as a Mistral
def test_heads_that_no_longer_divide_the_width_are_converted(
    tiny_folder: Path, tmp_path: Path, hidden: int
) -> None:
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    ids = list(range(5, 45))
    importance = measure(model, [torch.tensor([ids])])
    shape = shape_of(model)
    wanted = dataclasses.replace(shape, hidden=hidden, intermediate=96)
    small = carve(model, choose(shape, wanted, importance, range(shape.layers)), importance.shares)
    assert small.config.model_type == ("llama" if hidden == 48 else "mistral")
    save_model(small, tokenizer, tmp_path / "model")
    file = tmp_path / "model.gguf"
    convert(tmp_path / "model", file, tokenizer, "carved")
    with torch.no_grad():
        ours = small(torch.tensor([ids])).logits[0, -2]  # what the last token is predicted by
    with native.scorer(file, context=64, threads=1) as scorer:
        theirs = torch.from_numpy(scorer.logits(ids, len(ids) - 1))[-1]
    assert float((ours - theirs[: len(ours)]).abs().max()) < 0.05 * float(ours.abs().max())
