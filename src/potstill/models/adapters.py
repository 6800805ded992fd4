"""Low-rank adapters on a model: attached, saved, and merged into the weights with proof.

In: a transformers model and settings. Out: the model with an adapter that learns (LoRA, DoRA, or
LoRA on 4-bit weights), the adapter in PEFT's format, the merged model. PEFT does the work. Knows
nothing of training; several adapters on one base are in `adapter_sets.py`.

LoRA    W + s B A, s = alpha / rank or alpha / sqrt(rank); only A and B learn (arXiv:2106.09685)
DoRA    m (W + s B A) / |W + s B A|, the norm row by row; m learns too (arXiv:2402.09353)
QLoRA   LoRA on a W that was rounded to NF4 (arXiv:2305.14314)
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from potstill.core.files import whole_folder, write_json
from potstill.errors import ModelError
from potstill.models import quantised
from potstill.models.adapter_config import AdapterKind, LoraConfig, Precision

NAME = "default"
"""PEFT's own name for the only adapter."""
MERGE_TOLERANCE = 1e-3
"""Largest change of a logit, as a share of the largest logit: fp32 sums in another order."""
BASE = "base.json"
"""Beside the adapter: which base it was trained on."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def precision_of(kind: AdapterKind) -> Precision:
    """In which the base's weights are while this kind of adapter is trained."""
    return "4bit" if kind == "qlora" else "full"


def as_base(model: Any, kind: AdapterKind, *, remember: bool = False) -> Any:
    """The model as adapters of this kind are trained on it, in place: fp32, or 4-bit for QLoRA.

    remember: keep the digest of the weights as they were, for `save_adapter`. A model that is one
    already stays as it is. Errors: MissingExtraError, ModelError where 4-bit is not possible.
    """
    if remember and not hasattr(model, "base_digest"):
        model.base_digest = weights_digest(model)
    model.float()
    device = next(model.parameters()).device
    return quantised.quantise(model, precision_of(kind), torch.float32, device)


def check_targets(model: Any, settings: LoraConfig) -> None:
    """Errors: ModelError unless each target module is the end of a linear layer's name, or if the
    model has no linear layers at all."""
    known = quantised.linear_layers(model)
    if settings.target_modules == "all-linear":
        return
    ends = sorted({name.rpartition(".")[2] for name in known})
    unknown = [
        target
        for target in settings.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in known)
    ]
    if unknown:
        near = [near for one in unknown for near in get_close_matches(one, ends, 3, cutoff=0.4)]
        meant = f"Did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
        raise ModelError(
            f"{type(model).__name__} has no linear layer named {', '.join(unknown)} for an "
            "adapter.",
            f"{meant}It has {', '.join(ends)}; or use lora.target_modules: all-linear.",
        )


def attach(model: Any, kind: AdapterKind, settings: LoraConfig) -> Any:
    """The model with an adapter that learns, all else frozen. It says what it said before.

    model: as `as_base` leaves it. A's start is drawn by torch's generator.
    Errors: ModelError for target modules that it does not have.
    """
    import peft

    check_targets(model, settings)
    targets = settings.target_modules
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilised,
        use_dora=kind == "dora",
        init_lora_weights=True if settings.init == "kaiming" else settings.init,
        # Names of our own finding: PEFT looks for linear layers by class and misses none of these.
        target_modules=all_linear(model) if targets == "all-linear" else list(targets),
        task_type="CAUSAL_LM",
    )
    with peft_asks_by_old_names():
        return peft.get_peft_model(model, config)


def all_linear(model: Any) -> list[str]:
    """The shortest names that mean every linear layer but the output layer: their last parts, or
    whole names where a last part is also another module's."""
    layers = quantised.linear_layers(model)
    others = {
        name.rpartition(".")[2] for name, _ in model.named_modules() if name and name not in layers
    }
    found = set()
    for name in layers:
        last = name.rpartition(".")[2]
        found.add(name if last in others else last)
    return sorted(found)


def merge(model: Any, ids: Sequence[int]) -> Any:
    """The base with its adapter merged in, as plain fp32 layers, and proved to say the same.

    Weights in 4 bits are dequantised and not rounded again. ids: the tokens of a text on which
    logits are compared. Errors: ModelError if one moved by more than `MERGE_TOLERANCE`.
    """
    model.eval()
    before = logits_of(model, ids)
    merged = _on_plain_layers(model).merge_and_unload()
    require_same(before, logits_of(merged, ids), "Merging the adapter")
    return merged


def require_same(before: Tensor, after: Tensor, what: str) -> None:
    """Errors: ModelError if logits differ by more than `MERGE_TOLERANCE` of the largest."""
    moved = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    if not moved <= MERGE_TOLERANCE:  # so that NaN is refused
        raise ModelError(
            f"{what} changed the model's logits by {moved:.2%} of the largest.",
            "Use a smaller lora.alpha, or distill.adapter: none.",
        )


@torch.no_grad()
def logits_of(model: Any, ids: Sequence[int]) -> Tensor:
    """What the model says after each token of a text: [tokens, words] in fp32."""
    device = next(model.parameters()).device
    found = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits
    logits: Tensor = found[0].float()
    return logits


def _on_plain_layers(model: Any) -> Any:
    """The same adapter on the base's dequantised weights; PEFT itself would quantise them again."""
    if not quantised.is_quantised(model):
        return model
    import peft

    config, state = copy.deepcopy(model.peft_config[NAME]), _state(model)
    base = quantised.dequantise(model.unload())
    with peft_asks_by_old_names():
        plain = peft.get_peft_model(base, config)
        peft.set_peft_model_state_dict(plain, state)
    return plain.eval()


def save_adapter(model: Any, folder: Path, kind: AdapterKind, base: str | None) -> None:
    """Write the adapter in PEFT's format, and which base it belongs to, there whole or not at all.

    base: where people find the base, if anywhere. A folder that is there already is left as it is.
    """
    if folder.is_dir():
        return
    with whole_folder(folder) as part:
        save_file(_state(model), part / WEIGHTS, metadata={"format": "pt"})
        write_json(part / CONFIG, _config_of(model))
        write_json(
            part / BASE,
            {
                "base": base,
                "base_digest": getattr(model.get_base_model(), "base_digest", None)
                or weights_digest(model.get_base_model()),
                "base_precision": precision_of(kind),
                "kind": kind,
            },
        )


def _state(model: Any) -> dict[str, Tensor]:
    """The adapter's own tensors by PEFT's names, on the CPU."""
    import peft

    with peft_asks_by_old_names():
        state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


def _config_of(model: Any) -> dict[str, Any]:
    """What PEFT needs to load it. The same on every machine: no paths, sets in order."""
    config = copy.deepcopy(model.peft_config[NAME])
    config.inference_mode, config.base_model_name_or_path = True, None
    found: dict[str, Any] = config.to_dict()
    return {
        name: sorted(value) if isinstance(value, set) else value for name, value in found.items()
    }


def weights_digest(model: Any) -> str:
    """SHA-256 over names and weights rounded to bf16, hex.

    So that a model has the digest of its copy that was saved in bf16. An adapter on it is no part
    of it. Errors: ModelError if the weights are quantised, as they are no longer the base's own.
    """
    if quantised.is_quantised(model):
        raise ModelError(
            "The digest of a base cannot be taken from its quantised weights.",
            "Call as_base(…, remember=True) on the model before it is quantised.",
        )
    named = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }
    hashed = hashlib.sha256()
    for name in sorted(named):
        hashed.update(name.encode())
        rounded = named[name].detach().to(torch.bfloat16).cpu().contiguous()
        hashed.update(rounded.flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


@contextmanager
def peft_asks_by_old_names() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT still asks for a property that transformers has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield
