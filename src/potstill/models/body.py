"""The parts of a decoder, whatever its architecture calls them.

In: a transformers model, with or without adapters. Out: its body, the body's decoder layers, its
final norm. Known are models with their layers in `model.model.layers` (Llama, Mistral, Qwen, Gemma,
SmolLM and their like), and GPT-2 and those that name their parts as it does
(`model.transformer.h`). Knows nothing of what layers compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from potstill.errors import ModelError

KNOWN = (
    "Dropping layers is known for decoders with their layers in model.model.layers or, as GPT-2, "
    "in model.transformer.h."
)
NAMES = {"model": ("layers", "norm"), "transformer": ("h", "ln_f")}
"""What a decoder's body is called in its model, and in the body its layers and the final norm."""


def body_of(model: Any) -> Any:
    """The decoder without its output layer. Errors: ModelError for an unknown architecture."""
    # A PEFT model hides the real one a level deeper.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, (layers, _) in NAMES.items():
        body = getattr(inner, name, None)
        found = getattr(body, layers, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return body
    raise ModelError(f"The architecture {type(model).__name__} is not known here.", KNOWN)


def layers_of(body: Any) -> nn.ModuleList:
    """A body's decoder layers."""
    layers: nn.ModuleList = getattr(body, _names(body)[0])
    return layers


def norm_of(body: Any) -> Any:
    """A body's final norm; None if it has none of that name."""
    return getattr(body, _names(body)[1], None)


def put_layers(body: Any, layers: Iterable[nn.Module]) -> None:
    """Give a body these decoder layers instead of its own."""
    setattr(body, _names(body)[0], nn.ModuleList(layers))


def prefixes(model: Any) -> tuple[str, str]:
    """How the names of all tensors of decoder layers begin, and those of the final norm."""
    body = body_of(model)
    own = next(name for name, module in model.named_modules() if module is body)
    layers, norm = _names(body)
    return f"{own}.{layers}.", f"{own}.{norm}."


def _names(body: Any) -> tuple[str, str]:
    return next(names for names in NAMES.values() if names[0] in body._modules)
