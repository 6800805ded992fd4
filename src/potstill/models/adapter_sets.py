"""Several adapters on one base: attached side by side, switched between, weighed and merged.

    adapters = AdapterSet("student", {"legal": "adapters/legal", "medical": "adapters/medical"})
    adapters.use("legal")
    adapters.combine("both", {"legal": 0.7, "medical": 0.3})
    model = adapters.merged({"legal": 0.7, "medical": 0.3})

In: a base and folders in PEFT's format. Out: a model that answers with the adapter of choice. An
adapter of another base is refused before its weights are loaded. Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from potstill.core.files import read_json
from potstill.errors import ModelError, StoreError
from potstill.models import quantised
from potstill.models.adapter_config import Precision
from potstill.models.adapters import (
    BASE,
    CONFIG,
    WEIGHTS,
    logits_of,
    peft_asks_by_old_names,
    require_same,
    weights_digest,
)
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.save import save_model

PREFIX = "base_model.model."
BEYOND = ("modules_to_save", "lora_bias", "trainable_token_indices", "alora_invocation_tokens")
"""What PEFT can store beside the two matrices, and a merge by weights would lose."""


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
    config = read_json(folder / CONFIG)
    beyond = [name for name in BEYOND if config.get(name)]
    if config.get("peft_type") != "LORA" or beyond:
        what = f"has {', '.join(beyond)}" if beyond else f"is of type {config.get('peft_type')}"
        raise ModelError(
            f"The adapter {folder} {what}; only LoRA and DoRA on linear layers are known.",
            "Merge it with PEFT itself.",
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
    base = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    return Adapter(folder, config, base, shapes, parameters)


class AdapterSet:
    """One base model with several adapters, one of them, a mixture, or none in use.

    base: a model reference, or a loaded model, which is changed. adapters: folders by names of
    one's choice; the first is in use. A base whose adapters were trained on 4-bit weights (QLoRA)
    is rounded to NF4, as it was then, and held dequantised.
    Errors: ModelError for an adapter of another base, or none at all.
    """

    def __init__(self, base: Any, adapters: Mapping[str, Path | str]) -> None:
        import peft

        if not adapters:
            raise ModelError("There is no adapter to attach.", "Name at least one folder.")
        self.adapters = {name: read_adapter(folder) for name, folder in adapters.items()}
        reference = isinstance(base, str | Path)
        outline = _outline(base) if reference else base
        for adapter in self.adapters.values():
            _check_shapes(adapter, outline)
        precisions = {adapter.precision for adapter in self.adapters.values()}
        if len(precisions) > 1:
            raise ModelError(
                "Some of these adapters were trained on 4-bit weights and others on full ones, so "
                "no base is right for all.",
                "Merge them one by one.",
            )
        loaded = load_model(base) if reference else base.float()
        if any("base_digest" in adapter.base for adapter in self.adapters.values()):
            digest = weights_digest(loaded)
            for adapter in self.adapters.values():
                _check_digest(adapter, digest)
        (precision,) = precisions
        loaded.requires_grad_(False)
        quantised.dequantise(quantised.quantise(loaded, precision, torch.float32))
        with peft_asks_by_old_names():
            names = list(self.adapters)
            self.model = peft.PeftModel.from_pretrained(
                loaded, self.adapters[names[0]].folder, adapter_name=names[0]
            )
            for name in names[1:]:
                self.model.load_adapter(self.adapters[name].folder, adapter_name=name)
        self.model.eval()
        self.dora = any(adapter.is_dora for adapter in self.adapters.values())

    def use(self, name: str | None) -> Any:
        """Answer with that adapter or mixture from now on; None: with the base alone.

        Returns the model. Errors: ModelError for a name that is not attached.
        """
        if name is None:
            self.model.base_model.disable_adapter_layers()
            return self.model
        self._known({name: 1.0}, self.model.peft_config)
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(name)
        return self.model.requires_grad_(False)

    def combine(self, name: str, weights: Mapping[str, float]) -> Any:
        """Attach and use a mixture, whose update is exactly the weighted sum of the others'.

        Its rank is the sum of theirs. Errors: ModelError for an unknown name, or for DoRA, whose
        update is no product of two matrices; `merged` takes it.
        """
        self._known(weights, self.adapters)
        if name in self.model.peft_config:
            raise ModelError(f"There is an adapter {name} already.", "Choose another name.")
        if any(self.adapters[one].is_dora for one in weights):
            raise ModelError(
                "DoRA adapters cannot be mixed while they are attached, as each rescales the whole "
                "weight.",
                "Merge them: AdapterSet.merged, or `potstill adapters merge`.",
            )
        self.model.base_model.add_weighted_adapter(
            list(weights), list(weights.values()), name, combination_type="cat"
        )
        # PEFT puts the factors into the matrices and alpha to the rank, which is a factor of 1
        # unless rank-stabilised scaling is copied along.
        self.model.peft_config[name].use_rslora = False
        for layer in self._layers():
            if name in layer.scaling:
                layer.scaling[name] = 1.0
        return self.use(name)

    def merged(self, weights: Mapping[str, float]) -> Any:
        """The plain base with W + sum of weight_i (W_i - W) in each layer; the set is used up.

        W_i is the layer's weight with adapter i merged alone. Computed in float64, kept in fp32.
        Errors: ModelError for an unknown name.
        """
        self._known(weights, self.adapters)
        for layer in self._layers():
            base = layer.get_base_layer().weight
            total = base.detach().double()
            for name, weight in weights.items():
                if name in layer.lora_A:
                    total += weight * self._update(layer, name, base.detach().double())
            base.data = total.to(base.dtype)
        return self.model.unload()

    @staticmethod
    def _update(layer: Any, name: str, base: Tensor) -> Tensor:
        """W_i - W: [out, in]."""
        first, second = (half[name].weight.double() for half in (layer.lora_A, layer.lora_B))
        update: Tensor = layer.scaling[name] * (second @ first)
        if name not in layer.lora_magnitude_vector:
            return update
        changed = base + update
        length = layer.lora_magnitude_vector[name].weight.double()
        rescaled: Tensor = (length / changed.norm(dim=1)).unsqueeze(1) * changed
        return rescaled - base

    def _layers(self) -> list[Any]:
        from peft.tuners.lora import LoraLayer

        return [one for one in self.model.modules() if isinstance(one, LoraLayer)]

    @staticmethod
    def _known(weights: Mapping[str, float], known: Mapping[str, Any]) -> None:
        unknown = [name for name in weights if name not in known]
        if unknown or not weights:
            raise ModelError(
                f"There is no adapter {', '.join(unknown) or 'named'} here.",
                f"There are {', '.join(known)}.",
            )


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


def merge_folders(base: Path | str, weights: Mapping[Path, float], output: Path, text: str) -> None:
    """Merge adapters into their base and save it in the base's own type, with its tokenizer.

    A single adapter of weight 1 is proved to say the same on `text` as when it is attached.
    Errors: ModelError; StoreError if `output` is there already.
    """
    if output.exists():
        raise StoreError(f"{output} is there already.", "Choose another folder, or delete it.")
    adapters = AdapterSet(base, {f"adapter{n}": folder for n, folder in enumerate(weights)})
    named = dict(zip(adapters.adapters, weights.values(), strict=True))
    tokenizer = load_tokenizer(base)
    ids = tokenizer(text).input_ids
    alone = list(named.values()) == [1.0]
    before = logits_of(adapters.model, ids) if alone else None
    model = adapters.merged(named)
    if before is not None:
        require_same(before, logits_of(model, ids), "Merging the adapter")
    kept = AutoConfig.from_pretrained(model_folder(base), local_files_only=True).dtype
    save_model(model.to(kept or torch.float32), tokenizer, output)


def _outline(source: Path | str) -> Any:
    """The model without its weights: names and shapes alone."""
    config = AutoConfig.from_pretrained(model_folder(source), local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _check_shapes(adapter: Adapter, model: Any) -> None:
    """Errors: ModelError unless the model has each layer that the adapter changes, in its shape."""
    layers = quantised.linear_layers(model)
    lacking = [name for name in adapter.shapes if name not in layers]
    if lacking:
        raise _another_base(adapter, f"it changes {lacking[0]}, which the base does not have")
    for name, (rows, columns) in adapter.shapes.items():
        layer: Any = layers[name]
        if (layer.out_features, layer.in_features) != (rows, columns):
            raise _another_base(
                adapter,
                f"its {name} is {rows} x {columns}, the base's "
                f"{layer.out_features} x {layer.in_features}",
            )


def _check_digest(adapter: Adapter, digest: str) -> None:
    wanted = adapter.base.get("base_digest", digest)
    if wanted != digest:
        raise _another_base(
            adapter,
            f"it was trained on weights with the digest {wanted[:12]}, the base has {digest[:12]}",
        )


def _another_base(adapter: Adapter, why: str) -> ModelError:
    named = adapter.base.get("base") or adapter.config.get("base_model_name_or_path")
    return ModelError(
        f"The adapter {adapter.folder} belongs to another base: {why}.",
        f"Its base is {named}." if named else "Use the base that it was trained on.",
    )
