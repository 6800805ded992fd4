"""Every option of a training, set off its default, does what it says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from potstill.distill.distiller import Distilled

Train = Callable[..., Distilled]


@pytest.fixture
def train(distil: Train) -> Train:
    """train(name, **settings) -> what came of it."""

    def run(name: str, **settings: Any) -> Distilled:
        known = {"epochs": 3, "step_tokens": 120, "precision": "fp32", "signal": "live"}
        return distil(name, **(known | settings))

    return run


def nearly_the_same(one: Distilled, other: Distilled) -> None:
    assert one.trained.steps == other.trained.steps
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def steps(distilled: Distilled, name: str) -> list[float]:
    return [row[name] for row in distilled.history["steps"] if name in row]


def test_rates_follow_their_schedule(train: Train) -> None:
    settings = {"epochs": 10, "learning_rate": 1e-3, "term_gradients": False}
    warm = steps(train("warm", warmup_ratio=0.5, **settings), "learning_rate")
    half = len(warm) // 2
    assert warm[:half] == sorted(warm[:half])
    assert warm[0] < 0.3e-3
    flat = steps(train("flat", warmup_ratio=0.0, schedule="wsd", **settings), "learning_rate")
    assert flat[: int(0.7 * len(flat))] == [1e-3] * int(0.7 * len(flat))
    assert flat[-1] < 0.5e-3


@pytest.mark.whole
@pytest.mark.parametrize(
    "changes",
    [
        {"adam_beta2": 0.5},
        {"clip_norm": 0.01},
        {"weight_decay": 0.9},
        {"learning_rate": 1e-4},
        {"step_tokens": 240},
        {"max_tokens": 150},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_optimizers_settings_change_what_is_learnt(
    train: Train, changes: dict[str, Any]
) -> None:
    plain, other = train("plain"), train("other", **changes)
    name = "model.layers.0.mlp.down_proj.weight"
    one, two = (model.model.state_dict()[name] for model in (plain, other))
    assert not torch.equal(one, two)
    if "weight_decay" in changes:
        assert two.norm() < one.norm()
    if "max_tokens" in changes:
        assert other.trained.tokens < plain.trained.tokens
    if "step_tokens" in changes:
        assert other.trained.steps < plain.trained.steps


@pytest.mark.parametrize(
    ("changes", "term"),
    [
        ({"kd_tokens": "answer"}, "kd"),
        ({"temperature": 3.0}, "kd"),
        ({"divergence": "reverse_kl"}, "kd"),
        ({"divergence": {"forward_kl": 0.5, "jsd": 0.5}}, "kd"),
        ({"ce_tokens": "all"}, "ce"),
    ],
)
def test_the_objective_is_what_the_settings_say(
    train: Train, changes: dict[str, Any], term: str
) -> None:
    plain, other = steps(train("a"), term)[0], steps(train("b", **changes), term)[0]
    assert other != pytest.approx(plain, rel=1e-3)


def test_a_divergence_takes_its_parameter(train: Train) -> None:
    values = [
        steps(train(str(beta), divergence="jsd", divergence_parameter=beta), "kd")[0]
        for beta in (0.1, 0.5, None)
    ]
    assert values[0] != pytest.approx(values[1], rel=1e-2)
    assert values[1] == values[2]  # what it is if nothing is said


def test_every_term_and_every_schedule_can_be_asked_for(train: Train) -> None:
    distilled = train(
        "all",
        epochs=6,
        kd_weight={"start": 1.0, "end": 0.0, "until": 0.5},
        ce_weight={"start": 0.0, "end": 0.3, "shape": "cosine", "begin": 0.5},
        hidden={"mse_weight": 0.1, "cosine_weight": 0.2, "layers": {1: 2}, "projection": "always"},
        attention={"weight": 0.3, "layers": "last-1", "tokens": "answer"},
    )
    shown = [set(row) for row in distilled.history["steps"]]
    assert {"kd", "hidden_mse", "hidden_cosine", "attention"} <= shown[0]
    assert "ce" not in shown[0]
    assert {"ce", "hidden_mse", "hidden_cosine", "attention"} <= shown[-1]
    assert "kd" not in shown[-1]
    assert not any("map" in name for name in distilled.model.state_dict())  # no projection


def test_adapters_go_where_they_are_asked_to(train: Train) -> None:
    start = train("start", learning_rate=1e-12).model.state_dict()
    lora = {"rank": 2, "target_modules": ["q_proj"]}
    settings = {"adapter": "lora", "learning_rate": 1e-2, "epochs": 6}
    changed = {
        name.split(".")[-2]
        for name, tensor in train("lora", lora=lora, **settings).model.state_dict().items()
        if not torch.allclose(tensor, start[name], atol=1e-6)
    }
    assert changed == {"q_proj"}
    more = train("more", lora={**lora, "alpha": 320.0}, **settings).model.state_dict()
    less = train("less", lora=lora, **settings).model.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (more[name] - start[name]).norm() > 1.5 * (less[name] - start[name]).norm()


def test_frozen_embeddings_stay_as_they_are(train: Train) -> None:
    start = train("start", learning_rate=1e-12).model.get_input_embeddings().weight
    frozen = train("frozen", freeze_embeddings=True).model.get_input_embeddings().weight
    learnt = train("learnt").model.get_input_embeddings().weight
    torch.testing.assert_close(frozen, start, rtol=0.0, atol=1e-9)
    assert not torch.allclose(learnt, start, rtol=0.0, atol=1e-6)


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
