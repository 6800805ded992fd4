"""A model brought into another type says what it says when it is loaded in that type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.distill.signals import LiveTeacher
from potstill.models.cast import cast
from potstill.models.load import load_model


@pytest.fixture
def folder(tmp_path: Path, make_student: Any) -> Path:
    found: Path = make_student(tmp_path / "model", positions=2048)
    return found


def far(model: Any) -> torch.Tensor:
    """What it says at the end of a long text."""
    ids = torch.randint(0, 300, (1, 1500), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, -50:]
    return logits.float()


def test_a_cast_model_equals_one_that_was_loaded_in_that_type(folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours = cast(load_model(folder, torch.float32), torch.bfloat16)
    assert {one.dtype for one in ours.parameters()} == {torch.bfloat16}
    assert torch.equal(far(ours), far(loaded))


def test_positions_far_away_are_as_exact_as_in_fp32(folder: Path) -> None:
    exact = load_model(folder, torch.float32)
    truth = far(exact)
    ours = LiveTeacher(load_model(folder, torch.float32), torch.bfloat16).model
    rounded = load_model(folder, torch.float32).to(torch.bfloat16)  # frequencies too
    errors = [float((far(model) - truth).norm()) for model in (ours, rounded)]
    assert errors[0] < 0.5 * errors[1]


def test_every_set_of_frequencies_stays(random_model: Callable[..., Any]) -> None:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    model = random_model("gemma3_text", layer_types=layers)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cast(model, torch.bfloat16)
    after = dict(model.named_buffers())
    assert any("inv_freq" in name for name in before)
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
