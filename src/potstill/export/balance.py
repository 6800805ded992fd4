"""Balances a student's weights before they are quantised, without changing what it says.

In: a student of a known architecture, token ids of training rows. Out: the same student with
columns of its matrices scaled by powers of two and what feeds them scaled back, and how much of
the rounding error is left by estimate. Knows no file.

A block of a quantised file has one scale for its numbers, so each is off by a share of the largest
beside it, whatever it will be multiplied with. But of a layer's inputs a few are many times as
large as the others, and the errors of their columns are what is heard. Such a column is made larger
before it is quantised and its input smaller by the same factor: AWQ (Lin et al., "AWQ: Activation-
aware Weight Quantization for On-Device LLM Compression and Acceleration", 2024, arXiv:2306.00978,
section 3.2), with the root mean square of the input to a power that is searched for each place.
Factors are rounded to powers of two, which floating point numbers take without rounding: what is
not quantised stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

POWERS = (0.25, 0.35, 0.5)
"""Of the inputs' root mean squares; 0, which leaves a place as it is, is always tried."""
BITS, BLOCK = 4, 32
"""The grid that estimates how a number is rounded: symmetric, one scale a block."""
LARGEST = 6
"""No factor is beyond two to this power, up or down."""
QUIET = 1e-3
"""An input that is hardly ever there counts as this share of the largest one."""


@dataclass(frozen=True)
class Place:
    """Matrices of one input [outputs, inputs], and what the input is the product of: `feeds` are
    scaled back along their first dimension. offset: what a norm adds to its weight. group: inputs
    [count, repeats, size] whose factors must be equal over repeats, as heads that share a value."""

    name: str
    matrices: tuple[Tensor, ...]
    feeds: tuple[Tensor, ...]
    offset: float = 0.0
    group: tuple[int, int, int] | None = None


def balance(
    model: Any, rows: Sequence[Sequence[int]], tell: Callable[[int], None] = lambda done: None
) -> float | None:
    """Balance the model in place. Returns the rounding error that is left, as a share of what there
    was, weighted by the inputs and averaged over all places, by estimate; None where the
    architecture is not known, and the model as it was.

    rows: token ids, of training rows. tell: told how many of them have been read.
    """
    places = places_of(model)
    if places is None:
        return None
    squares = _mean_squares(model, places, rows, tell)
    with torch.no_grad():
        return fmean(_balanced(place, squares[place.name]) for place in places)


def places_of(model: Any) -> list[Place] | None:
    """Every place of the model that can be balanced; None for an architecture that is not known."""
    config = model.config
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        return None
    return [
        place
        for number, layer in enumerate(model.model.layers)
        for place in layout(layer, config, f"{number}")
    ]


def _plain(
    layer: Any,
    config: Any,
    name: str,
    second_norm: str = "post_attention_layernorm",
    offset: float = 0.0,
) -> Iterator[Place]:
    """Llama's layer and those that are built like it."""
    attention, mlp = layer.self_attn, layer.mlp
    heads = attention.q_proj, attention.k_proj, attention.v_proj
    yield Place(f"{name}.heads", _weights(*heads), (layer.input_layernorm.weight,), offset)
    yield Place(
        f"{name}.mixed", _weights(attention.o_proj), _all_of(attention.v_proj),
        group=_group(config, attention),
    )  # fmt: skip
    norm = getattr(layer, second_norm)
    yield Place(f"{name}.gates", _weights(mlp.gate_proj, mlp.up_proj), (norm.weight,), offset)
    yield Place(f"{name}.down", _weights(mlp.down_proj), _all_of(mlp.up_proj))


def _fused(layer: Any, config: Any, name: str) -> Iterator[Place]:
    """Phi-3's layer: heads in one matrix, gate and up in another."""
    attention, mlp = layer.self_attn, layer.mlp
    values = config.num_key_value_heads * _size(config)
    yield Place(f"{name}.heads", _weights(attention.qkv_proj), (layer.input_layernorm.weight,))
    yield Place(
        f"{name}.mixed", _weights(attention.o_proj), (attention.qkv_proj.weight[-values:],),
        group=_group(config, attention),
    )  # fmt: skip
    yield Place(
        f"{name}.gates", _weights(mlp.gate_up_proj), (layer.post_attention_layernorm.weight,)
    )
    up = mlp.gate_up_proj.weight[config.intermediate_size :]
    yield Place(f"{name}.down", _weights(mlp.down_proj), (up,))


_gemma = partial(_plain, offset=1.0)
_gemma_twice = partial(_plain, second_norm="pre_feedforward_layernorm", offset=1.0)
LAYOUTS: Mapping[str, Callable[[Any, Any, str], Iterator[Place]]] = {
    "llama": _plain,
    "mistral": _plain,
    "qwen2": _plain,
    "qwen3": _plain,
    "phi3": _fused,
    "gemma": _gemma,
    "gemma2": _gemma_twice,
    "gemma3_text": _gemma_twice,
}
"""Architecture, as transformers calls it -> the places of one of its layers."""


def _weights(*modules: Any) -> tuple[Tensor, ...]:
    return tuple(module.weight for module in modules)


def _all_of(module: Any) -> tuple[Tensor, ...]:
    """What a linear layer's outputs come from: its rows, and its bias if it has one."""
    return (module.weight,) if module.bias is None else (module.weight, module.bias)


def _size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _group(config: Any, attention: Any) -> tuple[int, int, int]:
    values = int(config.num_key_value_heads)
    return values, int(config.num_attention_heads) // values, _size(config)


def _mean_squares(
    model: Any,
    places: Sequence[Place],
    rows: Sequence[Sequence[int]],
    tell: Callable[[int], None],
) -> dict[str, Tensor]:
    """Place -> mean square of each of its inputs over the rows' tokens, in float64."""
    owners = {id(module.weight): module for module in model.modules() if hasattr(module, "weight")}
    sums: dict[str, Tensor] = {}
    count = 0

    def note(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().square().sum(0)
        sums[name] = sums[name] + seen if name in sums else seen

    hooks = [
        owners[id(place.matrices[0])].register_forward_pre_hook(partial(note, place.name))
        for place in places
    ]
    try:
        with torch.inference_mode():
            for done, ids in enumerate(rows, 1):
                model(input_ids=torch.tensor([list(ids)]), use_cache=False)
                count += len(ids)
                tell(done)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / count).clone() for name, total in sums.items()}


def _balanced(place: Place, squares: Tensor) -> float:
    """Scale one place by the best of the factors that are tried. Returns what is left of its
    error."""
    size = squares if place.group is None else _tied(squares, place.group)
    loud = size.sqrt().clamp_min(float(size.max().sqrt()) * QUIET)
    even = loud / loud.log().mean().exp()
    weight = squares.to(place.matrices[0].dtype)
    bare = _error(place.matrices, weight, None)
    best, factors = bare, None
    for power in POWERS if bare > 0 else ():
        tried = (even**power).log2().round().clamp(-LARGEST, LARGEST).exp2()
        tried = tried.to(place.matrices[0].dtype)
        error = _error(place.matrices, weight, tried)
        if error < best:
            best, factors = error, tried
    if factors is not None:
        for matrix in place.matrices:
            matrix.mul_(factors)
        back = factors if place.group is None else _once(factors, place.group)
        for feed in place.feeds:
            divisor = back.view(-1, *[1] * (feed.dim() - 1))
            feed.copy_((feed + place.offset) / divisor - place.offset)
    return best / bare if bare > 0 else 1.0


def _error(matrices: Sequence[Tensor], squares: Tensor, factors: Tensor | None) -> float:
    """The squared error that rounding makes of the outputs, if inputs were independent."""
    total = 0.0
    for matrix in matrices:
        scaled = matrix if factors is None else matrix * factors
        off = rounded(scaled) - scaled
        off = off if factors is None else off / factors
        total += float((off.square() * squares).sum())
    return total


def rounded(matrix: Tensor) -> Tensor:
    """The matrix on a grid of `BITS` bits with one scale for each `BLOCK` numbers of a row; the
    largest number of a block keeps its value."""
    outputs, inputs = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -inputs % BLOCK))
    blocks = padded.reshape(outputs, -1, BLOCK)
    most = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    steps = 2 ** (BITS - 1)
    scale = torch.where(most == 0, torch.ones_like(most), most / -steps)
    on_grid = (blocks / scale).round().clamp(-steps, steps - 1) * scale
    return on_grid.reshape(outputs, -1)[:, :inputs]


def _tied(squares: Tensor, group: tuple[int, int, int]) -> Tensor:
    """Means over inputs that must have one factor, at each of them."""
    values, repeats, size = group
    means = squares.view(values, repeats, size).mean(1, keepdim=True)
    return means.expand(values, repeats, size).reshape(-1)


def _once(factors: Tensor, group: tuple[int, int, int]) -> Tensor:
    """The factor of each value that heads share."""
    return factors.view(group)[:, 0].reshape(-1)
