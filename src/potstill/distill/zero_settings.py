"""DeepSpeed's settings for a training: by accelerate's plug-in, from the recipe or the launcher.

In: the training's configuration; what `accelerate launch --use_deepspeed` has put into the
environment. Out: DeepSpeed's settings, complete. What the recipe says is the recipe's alone: batch
sizes, precision, clipping, optimizer and schedule. Knows nothing of models.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate.utils import DeepSpeedPlugin
from pydantic import ValidationError

from potstill.distill.config import DistillConfig
from potstill.distill.ranks import DEEPSPEED
from potstill.errors import TrainingError

RECIPES = {
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
}
"""Parts of DeepSpeed's settings that another field says: ours."""


def deepspeed_for(config: DistillConfig) -> dict[str, Any] | None:
    """DeepSpeed's settings, if the recipe or the launcher wants it; else None.

    Errors: TrainingError for settings that are not DeepSpeed's to make, or a training that cannot
    be done in parts.
    """
    if DEEPSPEED in os.environ:
        _check(config)
        return _settings(_launchers(), config)
    if config.sharding != "deepspeed":
        return None
    plugin = DeepSpeedPlugin(
        hf_ds_config="none",
        zero_stage=config.deepspeed.zero_stage,
        offload_optimizer_device="cpu" if config.deepspeed.offload_optimizer else "none",
        offload_param_device="none",
    )
    return _settings(plugin, config)


def _launchers() -> DeepSpeedPlugin:
    """What `accelerate launch` was told."""
    try:
        return DeepSpeedPlugin()
    except ValueError as error:
        raise TrainingError(
            f"DeepSpeed's settings cannot be used: {error}", "Mend accelerate's configuration."
        ) from error


def _check(config: DistillConfig) -> None:
    """As the recipe is checked that says it itself."""
    if config.sharding == "fsdp":
        raise TrainingError(
            "accelerate launch was told to use DeepSpeed, and the training sharding: fsdp.",
            "Launch it without DeepSpeed, or take sharding out.",
        )
    try:
        DistillConfig.model_validate(config.model_dump() | {"sharding": "deepspeed"})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").partition(": use ")[0]
        raise TrainingError(
            f"accelerate launch was told to use DeepSpeed. {reason}.",
            "Launch it without DeepSpeed, or change the training.",
        ) from error


def _settings(plugin: DeepSpeedPlugin, config: DistillConfig) -> dict[str, Any]:
    given: dict[str, Any] = {
        name: value
        for name, value in plugin.deepspeed_config.items()
        if value not in ("auto", None)
    }
    stage = given["zero_optimization"].get("stage")
    if stage not in (1, 2, 3):
        raise TrainingError(
            f"DeepSpeed's settings have ZeRO's stage {stage}, which leaves nothing in parts.",
            "Take stage 1, 2 or 3, or launch without DeepSpeed.",
        )
    for part in ("offload_optimizer", "offload_param"):
        if (given["zero_optimization"].get(part) or {}).get("device") == "nvme":
            raise TrainingError(
                f"DeepSpeed's settings have {part} on NVMe, which was never tried here.",
                "Take cpu or none.",
            )
    for name, field in RECIPES.items():
        if given.get(name) and given[name].get("enabled", True) not in (False, "auto"):
            raise TrainingError(
                f"DeepSpeed's settings have {name}, which the recipe says: distill.{field}.",
                f"Take {name} out of DeepSpeed's settings.",
            )
        given.pop(name, None)
    given.pop("train_batch_size", None)
    given["zero_optimization"] = given["zero_optimization"] | {"compute_grad_norm": True}
    return given | {
        "train_micro_batch_size_per_gpu": 1,  # a step's micro-batches are the recipe's
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm,
        "gradient_allreduce_op": "mean",  # each loss is multiplied by the number of processes
        "managed_gradient_accumulation": True,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's, which no compiler has to build first
        "steps_per_print": 1 << 60,
    }
