"""Several adapters on one base: attached side by side, switched between, weighed and merged.

    adapters = AdapterSet("student", {"legal": "adapters/legal", "medical": "adapters/medical"})
    adapters.use("legal")
    adapters.combine("both", {"legal": 0.7, "medical": 0.3})
    model = adapters.merged({"legal": 0.7, "medical": 0.3})

In: a base and folders in PEFT's format. Out: a model that answers with the adapter of choice. An
adapter of another base is refused before its weights are loaded. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from potstill.errors import ModelError, StoreError
from potstill.models import quantised
from potstill.models.adapter_files import Adapter, read_adapter
from potstill.models.adapters import (
    logits_of,
    peft_asks_by_old_names,
    require_same,
    weights_digest,
)
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.save import save_model
from potstill.models.skeleton import skeleton

FITTING = "Use a bitsandbytes that fits this machine, or do it on another machine."


class AdapterSet:
    """One base model with several adapters, one of them, a mixture, or none in use.

    base: a model reference, or a loaded model, which is changed. adapters: folders by names of
    one's choice; the first is in use. A base whose adapters were trained on 4-bit weights (QLoRA)
    is rounded to NF4, as it was then, and held dequantised.
    Errors: ModelError for an adapter of another base, or none at all, or a name that cannot be.
    """

    def __init__(self, base: Any, adapters: Mapping[str, Path | str]) -> None:
        import peft

        if not adapters:
            raise ModelError("There is no adapter to attach.", "Name at least one folder.")
        for name in adapters:
            _check_name(name)
        self.adapters = {name: read_adapter(folder) for name, folder in adapters.items()}
        reference = isinstance(base, str | Path)
        outline = skeleton(model_folder(base)) if reference else base
        for adapter in self.adapters.values():
            _check_shapes(adapter, outline)
        precisions = {adapter.precision for adapter in self.adapters.values()}
        if len(precisions) > 1:
            raise ModelError(
                "Some of these adapters were trained on 4-bit weights and others on full ones, so "
                "no base is right for all.",
                "Merge them one by one.",
            )
        (precision,) = precisions
        quantised.check(precision, "The base of a QLoRA adapter", way_out=FITTING)
        loaded = load_model(base) if reference else base.float()
        if any("base_digest" in adapter.base for adapter in self.adapters.values()):
            digest = weights_digest(loaded)
            for adapter in self.adapters.values():
                _check_digest(adapter, digest)
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
        _check_name(name)
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


def merge_folders(base: Path | str, weights: Mapping[Path, float], output: Path, text: str) -> None:
    """Merge adapters into their base and save it in the base's own type, with its tokenizer.

    A single adapter of weight 1 is proved to say the same on `text` as when it is attached.
    Errors: ModelError; StoreError if `output` is there already.
    """
    if output.exists():
        raise StoreError(f"{output} is there already.", "Choose another folder, or delete it.")
    tokenizer = load_tokenizer(base)
    adapters = AdapterSet(base, {f"adapter{n}": folder for n, folder in enumerate(weights)})
    named = dict(zip(adapters.adapters, weights.values(), strict=True))
    ids = tokenizer(text).input_ids
    alone = list(named.values()) == [1.0]
    before = logits_of(adapters.model, ids) if alone else None
    model = adapters.merged(named)
    if before is not None:
        require_same(before, logits_of(model, ids), "Merging the adapter")
    kept = AutoConfig.from_pretrained(
        model_folder(base), local_files_only=True, trust_remote_code=False
    ).dtype
    save_model(model.to(kept or torch.float32), tokenizer, output)


def _check_name(name: str) -> None:
    """Errors: ModelError for what cannot be a module's name, which PEFT makes of it."""
    try:
        nn.ModuleDict({name: nn.Identity()})
    except KeyError as error:
        raise ModelError(
            f"An adapter cannot be named {name!r}: {error.args[0]}.", "Choose another name."
        ) from error


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
