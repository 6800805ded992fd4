"""DeepSpeed's settings: from the recipe or accelerate's launcher, and never what a recipe says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.distill import CorrectConfig, DistillConfig
from potstill.distill.ranks import ACCELERATES, DEEPSPEED, Ranks, joined
from potstill.distill.zero import ZeroSharded
from potstill.distill.zero_settings import deepspeed_for
from potstill.errors import MissingExtraError, TrainingError

Configs = Callable[..., DistillConfig]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """As a process that accelerate has started: its words in the environment."""

    def launch(file: dict[str, Any] | None = None, **said: str) -> None:
        monkeypatch.setenv(DEEPSPEED, "true")
        for name, value in said.items():
            monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
        if file is not None:
            path = tmp_path / "deepspeed.json"
            path.write_text(json.dumps(file))
            monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))

    return launch


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_recipe_says_what_is_in_parts(config_of: Configs, stage: int) -> None:
    assert deepspeed_for(config_of()) is None
    parts = {"zero_stage": stage, "offload_optimizer": stage == 2}
    settings = deepspeed_for(config_of(sharding="deepspeed", deepspeed=parts, clip_norm=0.7))
    assert settings is not None
    zero = settings["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["offload_optimizer"]["device"] == ("cpu" if stage == 2 else "none")
    assert settings["gradient_clipping"] == 0.7
    assert settings["gradient_accumulation_steps"] == 1
    assert "auto" not in settings.values()


def test_the_launchers_settings_are_taken(
    config_of: Configs, launched: Callable[..., None]
) -> None:
    launched(ZERO_STAGE="3", OFFLOAD_PARAM_DEVICE="cpu")
    settings = deepspeed_for(config_of())
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"


def test_a_file_of_settings_is_taken_and_batches_stay_the_recipes(
    config_of: Configs, launched: Callable[..., None]
) -> None:
    own = {"stage": 2, "overlap_comm": False}
    launched({"zero_optimization": own, "train_batch_size": 64, "gradient_clipping": 9.0,
              "bf16": {"enabled": False}})  # fmt: skip
    settings = deepspeed_for(config_of(clip_norm=0.5))
    assert settings is not None
    assert settings["zero_optimization"]["overlap_comm"] is False
    assert "train_batch_size" not in settings
    assert settings["train_micro_batch_size_per_gpu"] == 1
    assert settings["gradient_clipping"] == 0.5
    assert "bf16" not in settings


def test_settings_that_would_change_the_gradient_unseen_are_overruled(
    config_of: Configs, launched: Callable[..., None]
) -> None:
    own = {"stage": 2, "compute_grad_norm": False}
    others = {"managed_gradient_accumulation": False, "gradient_accumulation_steps": 8}
    others |= {"gradient_allreduce_op": "sum"}
    launched({"zero_optimization": own, "bf16": {"enabled": "auto"}, **others})
    settings = deepspeed_for(config_of())
    assert settings is not None
    assert settings["gradient_allreduce_op"] == "mean"
    assert settings["managed_gradient_accumulation"] is True
    assert settings["gradient_accumulation_steps"] == 1
    assert settings["zero_optimization"]["compute_grad_norm"] is True


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"zero_optimization": {"stage": 0}}, "leaves nothing in parts"),
        ({"fp16": {"enabled": False}}, "specify the ZeRO optimization"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer on NVMe",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_one_clear_line(
    config_of: Configs, launched: Callable[..., None], file: dict[str, Any], words: str
) -> None:
    launched(file)
    with pytest.raises(TrainingError, match=words):
        deepspeed_for(config_of())


def test_launcher_and_training_that_contradict_each_other_are_refused(
    config_of: Configs, launched: Callable[..., None]
) -> None:
    launched(ZERO_STAGE="2")
    with pytest.raises(TrainingError, match="and the training sharding: fsdp"):
        deepspeed_for(config_of(sharding="fsdp"))


def test_accelerate_does_not_hear_of_deepspeed_in_one_process_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ACCELERATES, "true")
    with joined() as ranks:
        assert ranks.count == 1
        assert ACCELERATES not in os.environ
    assert os.environ[ACCELERATES] == "true"


def test_a_correction_by_adapters_is_not_in_parts() -> None:
    with pytest.raises(ValidationError, match="with method: lora use"):
        CorrectConfig(method="lora", sharding="deepspeed")


@pytest.mark.parametrize(
    ("part", "field"),
    [("fp16", "precision"), ("optimizer", "optimizer"), ("scheduler", "schedule")],
)
def test_what_the_recipe_says_is_refused_there(
    config_of: Configs, launched: Callable[..., None], part: str, field: str
) -> None:
    launched({"zero_optimization": {"stage": 2}, part: {"enabled": True, "type": "X"}})
    with pytest.raises(TrainingError, match=rf"distill\.{field}") as told:
        deepspeed_for(config_of())
    assert told.value.hint == f"Take {part} out of DeepSpeed's settings."


def test_a_training_that_cannot_be_in_parts_is_refused_in_the_launcher_too(
    config_of: Configs, launched: Callable[..., None]
) -> None:
    launched(ZERO_STAGE="2")
    with pytest.raises(TrainingError, match="adapters, hidden and attention need the whole"):
        deepspeed_for(config_of(adapter="lora"))


def test_without_deepspeed_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, random_model: Callable[..., Any], config_of: Configs
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    settings = deepspeed_for(config_of(sharding="deepspeed"))
    assert settings is not None
    with pytest.raises(MissingExtraError, match="potstill\\[deepspeed\\]"):
        ZeroSharded(random_model(), Ranks(0, 2), settings)
