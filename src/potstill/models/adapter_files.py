"""An adapter on disk in PEFT's format: read, checked and described without its weights.

In: a folder. Out: an `Adapter`, plain values about it. Knows nothing of its base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open

from potstill.core.files import read_json
from potstill.errors import ModelError
from potstill.models.adapter_config import Precision
from potstill.models.adapters import BASE, CONFIG, WEIGHTS

PREFIX = "base_model.model."
BEYOND = (
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "fan_in_fan_out",
)
"""What PEFT can store beside the two matrices, and a merge by weights would lose or take wrong."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, read but for its weights."""

    folder: Path
    config: Mapping[str, Any]
    """PEFT's."""
    base: Mapping[str, Any]
    """Which base it was trained on: `base`, `base_digest`, `base_precision`, `kind`; or empty."""
    shapes: Mapping[str, tuple[int, int]]
    """(out, in) of each linear layer that it changes, by name."""
    parameters: int

    @property
    def is_dora(self) -> bool:
        """Whether it also learns each row's length."""
        return bool(self.config.get("use_dora"))

    @property
    def precision(self) -> Precision:
        """Of the base's weights while it was trained."""
        found: Precision = self.base.get("base_precision", "full")
        return found


def read_adapter(folder: Path | str) -> Adapter:
    """Errors: ModelError for a folder that holds no whole LoRA adapter in safetensors."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"The folder {folder} holds no adapter: it has no {name}.",
                f"Point to a folder that was saved by PEFT, with {CONFIG} and {WEIGHTS}; pickle "
                "files (.bin) are not loaded.",
            )
    config = _object(folder / CONFIG)
    beyond = [name for name in BEYOND if config.get(name)]
    if config.get("peft_type") != "LORA" or beyond:
        what = f"has {', '.join(beyond)}" if beyond else f"is of type {config.get('peft_type')}"
        raise ModelError(
            f"The adapter {folder} {what}; only LoRA and DoRA on linear layers are known.",
            "Merge it with PEFT itself.",
        )
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(
                f"{folder / CONFIG} has {name}: {value}, which is no positive number.",
                "Copy the file again from where the adapter was saved.",
            )
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    parameters = 0
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(key).get_shape())
                name, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
                halves.setdefault(name, {})[part.removesuffix(".weight")] = shape
                parameters += torch.Size(shape).numel()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{folder / WEIGHTS} is not a whole safetensors file: {error}.", "Copy it again."
        ) from error
    shapes = {}
    for name, parts in halves.items():
        first, second = parts.get("A"), parts.get("B")
        if first is None or second is None or len(first) != 2 or first[0] != second[1]:
            raise ModelError(
                f"The adapter {folder} is not whole at {name}: it has {', '.join(parts)}.",
                "Save it again; only adapters of linear layers are known.",
            )
        shapes[name] = (second[0], first[1])
    base = _object(folder / BASE) if (folder / BASE).is_file() else {}
    if base.get("base_precision", "full") not in get_args(Precision):
        raise ModelError(
            f"{folder / BASE} has base_precision: {base['base_precision']}, which is unknown.",
            f"Known are {', '.join(get_args(Precision))}.",
        )
    if not isinstance(base.get("base_digest", ""), str):
        raise ModelError(
            f"{folder / BASE} has base_digest: {base['base_digest']}, which is no digest.",
            "Copy the file again from where the adapter was saved.",
        )
    return Adapter(folder, config, base, shapes, parameters)


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(
            f"{path} holds no JSON object.", "Copy the file again from where it was saved."
        )
    return found


def describe(adapter: Adapter) -> dict[str, Any]:
    """What there is to say of it, in plain values; None is unknown."""
    config = adapter.config
    rank, alpha = config["r"], config["lora_alpha"]
    return {
        "kind": adapter.base.get("kind", "dora" if adapter.is_dora else "lora"),
        "rank": rank,
        "alpha": alpha,
        "scaling": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        "modules": sorted({name.rpartition(".")[2] for name in adapter.shapes}),
        "layers": len(adapter.shapes),
        "parameters": adapter.parameters,
        "base": adapter.base.get("base") or config.get("base_model_name_or_path"),
        "base_precision": adapter.base.get("base_precision"),
        "base_digest": adapter.base.get("base_digest"),
    }
