"""Options that change how a training is computed, and not what comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from potstill.distill import Distiller
from potstill.distill.distiller import Distilled

ROWS = [
    {"question": f"{ask} litres?", "context": "Unit 7 holds 1250 litres.", "answer": "1250"}
    for ask in ("How many", "What", "Which", "Of what", "How", "Why", "Where", "When")
]
Train = Callable[..., Distilled]


@pytest.fixture
def train(teacher_folder: Path, tmp_path: Path) -> Train:
    """train(name, **settings) -> what came of it."""

    def run(name: str, **settings: Any) -> Distilled:
        known = {"epochs": 3, "step_tokens": 120, "precision": "fp32", "signal": "live"}
        return Distiller(teacher_folder, output=tmp_path / name, **(known | settings)).train(ROWS)

    return run


def nearly_the_same(one: Distilled, other: Distilled) -> None:
    assert one.trained.steps == other.trained.steps
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_computes_layers_twice_and_the_same(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, real = [], LlamaMLP.forward

    def counted(self: Any, states: Any) -> Any:
        calls.append(1)
        return real(self, states)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain = train("plain", term_gradients=False)
    before = len(calls)
    calls.clear()
    checkpointed = train("checkpointed", gradient_checkpointing=True, term_gradients=False)
    nearly_the_same(plain, checkpointed)
    assert len(calls) > before


@pytest.mark.slow
# Of torch's compiler itself, about its own insides.
@pytest.mark.filterwarnings("default:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_student_learns_the_same(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train("plain")
    compiled, real = [], torch.nn.Module.compile

    def counted(self: Any, *args: Any, **settings: Any) -> Any:
        compiled.append(type(self).__name__)
        return real(self, *args, **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", counted)
    nearly_the_same(plain, train("compiled", compile=True))
    assert set(compiled) == {"LlamaMLP", "LlamaRMSNorm"}


def test_term_gradients_are_measured_where_asked_for_and_change_nothing(train: Train) -> None:
    measured, plain = train("measured"), train("plain", term_gradients=False)
    first = measured.history["steps"][0]
    assert first["grad_norm_kd"] > 0
    assert first["grad_norm_ce"] > 0
    assert not any(name.startswith("grad_norm_") for row in plain.history["steps"] for name in row)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(measured.model.state_dict()[name], tensor), name


def test_a_tracker_is_told_the_curves(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: what transformers' own callback calls is noted."""
    told: list[dict[str, Any]] = []

    class Run:
        def __init__(self, **settings: Any) -> None:
            self.config: dict[str, Any] = {}

    fake = ModuleType("trackio")
    fake.__spec__ = pytest.__spec__
    space = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    for name, value in {
        "context_vars": space,
        "__version__": "0.20.0",
        "init": lambda **settings: Run(),
        "log": lambda values, **more: told.append(values),
        "finish": lambda: None,
        "config": {},
    }.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.is_trackio_available", lambda: True
    )
    train("tracked", trackers=("trackio",))
    logged = {name for values in told for name in values}
    assert {"train/loss", "train/kd", "train/ce", "eval/kl"} <= logged
