"""How much each channel, neuron and head of a decoder does, measured on text.

In: a decoder whose widths can be cut (`shape.FAMILIES`), calibration token ids. Out: `Importance`,
figures that can be ranked, and what cutting channels does to the norms. Decides nothing: what is
kept is chosen in `width.py`.

After Minitron, Muralidharan et al. 2024, arXiv:2407.14679, section 2.2: means over tokens of
activations, from forward passes alone. Two things differ. Neurons and heads are weighted by the
part of the output layer that reads them, so that a neuron whose large activation meets small
weights does not count for more than it does. And channels are measured relative to their token's
norm, at the inputs of all norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.body import body_of
from potstill.models.shape import Shape, shape_of_config
from potstill.models.surgery import parameters_of


@dataclass(frozen=True)
class Importance:
    """Of the parts of one model; in each tensor, more is more important."""

    channels: Tensor
    """[hidden]: root mean square of a channel after the norms, over tokens and norms."""
    neurons: list[Tensor]
    """[intermediate] a layer: root mean square of a neuron times the norm of its output weights."""
    heads: list[Tensor]
    """[heads] a layer: root mean square of what a head adds to the residual stream."""
    shares: dict[str, Tensor]
    """[hidden] for each norm over channels, by module name: the share of a token's squared norm
    that lies in each channel, mean over tokens. They add up to 1."""


def shape_of(model: Any) -> Shape:
    """The model's shape. Errors: ModelError if it is not one whose widths can be cut."""
    shape = shape_of_config(model.config.get_text_config().to_dict())
    body_of(model)
    if shape.parameters != parameters_of(model):
        raise ModelError(
            f"This {type(model).__name__} has {parameters_of(model):,} weights where its "
            f"configuration makes {shape.parameters:,}, so its widths cannot be cut.",
            "Set distill.student.axes: depth.",
        )
    return shape


def channel_norms(model: Any) -> dict[str, nn.Module]:
    """The norms over the hidden size, by module name."""
    hidden = int(model.config.get_text_config().hidden_size)
    found = {
        name: module
        for name, module in body_of(model).named_modules()
        if type(module).__name__.endswith("RMSNorm") and module.weight.shape == (hidden,)
    }
    # A head may be as wide as a small model; its norms are those of attention.
    return {name: module for name, module in found.items() if ".self_attn." not in name}


@torch.no_grad()
def measure(model: Any, batches: Sequence[Tensor]) -> Importance:
    """Run the model over token ids [B, L] each, without padding, and measure all its parts.

    Errors: ModelError for another architecture or no text.
    """
    shape, body = shape_of(model), body_of(model)
    norms = channel_norms(model)
    shares = {name: torch.zeros(shape.hidden, dtype=torch.float64) for name in norms}
    channels = torch.zeros(shape.hidden, dtype=torch.float64)
    neurons = [torch.zeros(shape.intermediate, dtype=torch.float64) for _ in body.layers]
    seconds = [
        torch.zeros(shape.heads, shape.head_dim, shape.head_dim, dtype=torch.float64)
        for _ in body.layers
    ]

    def of_norm(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Tensor) -> None:
            squared = args[0].flatten(0, -2).float().square()
            total = squared.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            shares[name] += (squared / total).sum(0).double().cpu()
            channels.add_(output.flatten(0, -2).float().square().sum(0).double().cpu())

        return hook

    def of_neurons(number: int) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            neurons[number] += args[0].flatten(0, -2).float().square().sum(0).double().cpu()

        return hook

    def of_heads(number: int) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            states = args[0].flatten(0, -2).float().unflatten(-1, (shape.heads, shape.head_dim))
            seconds[number] += (states.permute(1, 2, 0) @ states.transpose(0, 1)).double().cpu()

        return hook

    hooks = [module.register_forward_hook(of_norm(name)) for name, module in norms.items()]
    for number, layer in enumerate(body.layers):
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(of_neurons(number)))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(of_heads(number)))
    try:
        for ids in batches:
            body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(ids.numel() for ids in batches)
    if not tokens:
        raise ModelError("There is no calibration text to measure the model's parts on.")
    for number, layer in enumerate(body.layers):
        weights = layer.mlp.down_proj.weight.double().cpu()
        neurons[number] = (neurons[number] / tokens).sqrt() * weights.norm(dim=0)
    return Importance(
        channels=(channels / (tokens * len(norms))).sqrt(),
        neurons=neurons,
        heads=[_energy(layer, moment / tokens) for layer, moment in _pairs(body, seconds)],
        shares={name: share / tokens for name, share in shares.items()},
    )


def _pairs(body: Any, seconds: Sequence[Tensor]) -> list[tuple[Any, Tensor]]:
    return list(zip(body.layers, seconds, strict=True))


def _energy(layer: Any, moment: Tensor) -> Tensor:
    """sqrt E|W_h x_h|^2 a head: W_h its columns of o_proj, moment [heads, d, d] = E x x^T."""
    heads, size = moment.shape[:2]
    weight = layer.self_attn.o_proj.weight.double().cpu().unflatten(1, (heads, size))
    return torch.einsum("ohi,hij,ohj->h", weight, moment, weight).clamp_min(0).sqrt()
