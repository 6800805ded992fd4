"""Carve a smaller decoder out of a larger one: fewer layers, channels, neurons, heads.

In: a decoder of a known family (`shape.FAMILIES`), what is kept of it. Out: a new model of the same
family with those parts of the weights, which saves and loads with plain transformers. Does not
measure (`importance.py`) and does not decide sizes (`targets.py`).

Three things are made up for when channels of the residual stream go. RMSNorm divides by the root
mean square over the channels, which is another one over fewer: each norm's weight is multiplied by
the root mean square, over calibration tokens, of kept to whole. Gemma multiplies embeddings by the
root of the hidden size: the embeddings are multiplied by what that factor lost, and where they are
also the output layer the last norm is divided by it. Heads keep their size (`head_dim`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.cast import cast
from potstill.models.importance import Importance, channel_norms, shape_of
from potstill.models.shape import FAMILIES, Shape
from potstill.models.surgery import follow_layers

LLAMA_ONLY = ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp")


@dataclass(frozen=True)
class Parts:
    """What is kept, as ascending numbers in the larger model; the lists have one entry for each
    kept layer."""

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    neurons: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]
    kv_heads: tuple[tuple[int, ...], ...]


def choose(shape: Shape, wanted: Shape, importance: Importance, layers: Sequence[int]) -> Parts:
    """The most important parts for `wanted`, in these layers of the model.

    Key-value heads go with all query heads that read them; then each remaining group loses its
    least important query heads, as many in each. Errors: ModelError for sizes that do not nest.
    """
    check_heads(shape, wanted)
    heads, kv_heads = [], []
    for layer in layers:
        queries, keys = _heads(shape, wanted, importance.heads[layer])
        heads.append(queries)
        kv_heads.append(keys)
    return Parts(
        layers=tuple(layers),
        channels=_best(importance.channels, wanted.hidden),
        neurons=tuple(_best(importance.neurons[n], wanted.intermediate) for n in layers),
        heads=tuple(heads),
        kv_heads=tuple(kv_heads),
    )


def check_heads(shape: Shape, wanted: Shape) -> None:
    """Errors: ModelError unless `wanted`'s heads can be taken out of `shape`'s, group by group."""
    groups, per_group = wanted.kv_heads, wanted.heads // max(1, wanted.kv_heads)
    whole = groups * per_group == wanted.heads and per_group >= 1
    if not (whole and 1 <= groups <= shape.kv_heads and per_group <= shape.heads // shape.kv_heads):
        raise ModelError(
            f"{wanted.heads} heads in {groups} groups cannot be taken out of {shape.heads} in "
            f"{shape.kv_heads}: every group must keep equally many."
        )


@torch.no_grad()
def carve(model: Any, parts: Parts, shares: Mapping[str, Tensor]) -> Any:
    """A new model in evaluation mode with these parts of `model`, which is left as it is.

    shares: of `Importance`, by which the norms are scaled; only used where channels go.
    Errors: ModelError for an architecture that is not known.
    """
    before, config = shape_of(model), copy.deepcopy(model.config)
    text = config.get_text_config()
    follow_layers(model, text, parts.layers)
    text.hidden_size = len(parts.channels)
    text.intermediate_size = len(parts.neurons[0])
    text.num_attention_heads = len(parts.heads[0])
    text.num_key_value_heads = len(parts.kv_heads[0])
    text.head_dim = before.head_dim
    with torch.random.fork_rng(devices=[]):  # the new model's first weights are drawn by lot
        small = cast(_empty(model, text, config, before), model.dtype)
    scales = _norm_scales(model, before, parts, shares)
    source = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        parameter.copy_(_piece(name, source, parts, before, scales))
    small.tie_weights()
    if model.generation_config is not None:
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.eval().requires_grad_(False)


def _empty(model: Any, text: Any, config: Any, before: Shape) -> Any:
    """A model of the new configuration, its weights still to be filled in."""
    if text.hidden_size % text.num_attention_heads and before.family == "llama":
        # transformers refuses such a Llama. A Mistral without a window computes the same.
        from transformers import MistralConfig, MistralForCausalLM

        fields = {k: v for k, v in text.to_dict().items() if k not in LLAMA_ONLY}
        config = MistralConfig(**fields, sliding_window=None)
        return MistralForCausalLM(config)
    return type(model)(config)


def _heads(
    shape: Shape, wanted: Shape, importance: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size, kept = shape.heads // shape.kv_heads, wanted.heads // wanted.kv_heads
    groups = importance.view(shape.kv_heads, size)
    energy = groups.square().topk(kept, dim=1).values.sum(1)
    keys = _best(energy, wanted.kv_heads)
    return tuple(key * size + head for key in keys for head in _best(groups[key], kept)), keys


def _best(importance: Tensor, count: int) -> tuple[int, ...]:
    """The numbers of the `count` largest, ascending; of equal ones the first."""
    order = torch.sort(importance, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def _norm_scales(
    model: Any, before: Shape, parts: Parts, shares: Mapping[str, Tensor]
) -> dict[str, float]:
    """What each norm over channels is multiplied by, by its name in the larger model."""
    kept = list(parts.channels)
    if len(kept) == before.hidden:
        return {}
    growth = before.hidden / len(kept)
    scales = {
        name: math.sqrt(growth * float(shares[name][kept].sum())) for name in channel_norms(model)
    }
    if FAMILIES[before.family].unit_offset and before.tied:
        scales["norm"] /= math.sqrt(growth)
    return scales


def _piece(
    name: str,
    source: Mapping[str, Tensor],
    parts: Parts,
    before: Shape,
    scales: Mapping[str, float],
) -> Tensor:
    """The part of the larger model's parameter that belongs at `name` in the smaller one."""
    channels = torch.tensor(parts.channels)
    unit_offset = FAMILIES[before.family].unit_offset
    words = name.split(".")
    module, kind = words[-2], words[-1]
    if module in ("embed_tokens", "lm_head"):
        weight = source[name][:, channels]
        grown = math.sqrt(before.hidden / len(channels)) if unit_offset else 1.0
        return weight * grown if module == "embed_tokens" else weight
    place = 0
    if "layers" in words:
        place = int(words[words.index("layers") + 1])
        words[words.index("layers") + 1] = str(parts.layers[place])
    old = source[".".join(words)]
    if module in ("q_norm", "k_norm"):
        return old
    if kind == "weight" and old.ndim == 1:
        scale = scales.get(".".join(words[1:-1]), 1.0)
        weight = old[channels]
        return (1 + weight) * scale - 1 if unit_offset else weight * scale
    outputs, inputs = {
        "q_proj": (rows_of(parts.heads[place], before.head_dim), channels),
        "k_proj": (rows_of(parts.kv_heads[place], before.head_dim), channels),
        "v_proj": (rows_of(parts.kv_heads[place], before.head_dim), channels),
        "o_proj": (channels, rows_of(parts.heads[place], before.head_dim)),
        "gate_proj": (torch.tensor(parts.neurons[place]), channels),
        "up_proj": (torch.tensor(parts.neurons[place]), channels),
        "down_proj": (channels, torch.tensor(parts.neurons[place])),
    }[module]
    return old[outputs] if kind == "bias" else old[outputs][:, inputs]


def rows_of(heads: Sequence[int], size: int) -> Tensor:
    """The rows of these heads."""
    return (torch.tensor(heads).unsqueeze(1) * size + torch.arange(size)).flatten()
