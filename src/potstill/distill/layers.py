"""Intermediate layers of teacher and student: which belong together, and how far they are apart.

In: a layer map out of a recipe; models, whose layers' outputs are noted while they run; hidden
states. Out: pairs of layers, hidden states, and the (weighted) sums over tokens of their distances;
the one reducer in `terms.py` divides. Knows nothing of batches, steps, logits or attention.

Layers are counted 1..L: layer n is the output of the n-th decoder layer, the residual stream before
the final norm. The embeddings would be 0 and are no layer. In transformers' `hidden_states`, layer
n < L is entry n; entry L is layer L after the final norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.distill.losses import weighted_sum
from potstill.errors import TrainingError
from potstill.models.body import body_of, layers_of

LayerMap = str | Mapping[int, int]
"""`uniform`, `last-K` (the last K layers of both), or {student layer: teacher layer}."""

SMALLEST_NORM = 1e-6
"""Below it a state has no direction: the gradient of its cosine grows as 1 / norm."""


def layer_pairs(
    layers: LayerMap, student_layers: int, teacher_layers: int
) -> list[tuple[int, int]]:
    """(student layer, teacher layer) of each pair, ascending by the student's layer, from 1.

    `uniform`: every layer of the shallower model with a layer of the other, evenly spaced, the last
    with the last; for a student that is not deeper, student layer i belongs to teacher layer
    round(i * teacher_layers / student_layers) (TinyBERT, Jiao et al. 2020, arXiv:1909.10351).
    `last-K`: the last K layers of both, one by one.
    Errors: TrainingError for another word, for an empty map, and for a layer that does not exist.
    """
    depths = (student_layers, teacher_layers)
    if isinstance(layers, Mapping):
        return _explicit_pairs(layers, *depths)
    if layers == "uniform":
        count = min(depths)
        return [
            (_spaced(n, count, student_layers), _spaced(n, count, teacher_layers))
            for n in range(1, count + 1)
        ]
    last = re.fullmatch(r"last-([0-9]+)", layers)
    if last is None:
        raise TrainingError(
            f"The layer map {layers!r} is not known.",
            "Use uniform, last-3 (or another number), or a map such as {1: 2, 2: 4}.",
        )
    count = int(last[1])
    if not 1 <= count <= min(depths):
        raise TrainingError(
            f"The layer map {layers} asks for {count} layers, but the student has "
            f"{student_layers} and the teacher {teacher_layers}.",
            f"Use last-1 to last-{min(depths)}.",
        )
    return [(student_layers - n, teacher_layers - n) for n in reversed(range(count))]


def _spaced(number: int, count: int, depth: int) -> int:
    """round(number * depth / count), halves upward: whole numbers, so no float decides."""
    return (2 * number * depth + count) // (2 * count)


def _explicit_pairs(
    layers: Mapping[int, int], student_layers: int, teacher_layers: int
) -> list[tuple[int, int]]:
    if not layers:
        raise TrainingError(
            "The layer map is empty, so no layer would be compared.",
            "Name at least one pair, such as {1: 2}, or set the weights of hidden states to 0.",
        )
    pairs = sorted(layers.items())
    for pair in pairs:
        for side, layer, depth in zip(
            ("student", "teacher"), pair, (student_layers, teacher_layers), strict=True
        ):
            if not 1 <= layer <= depth:
                raise TrainingError(
                    f"The layer map pairs student layer {pair[0]} with teacher layer {pair[1]}, "
                    f"but the {side} has layers 1 to {depth}.",
                    _way_out(layer, depth),
                )
    return pairs


def _way_out(layer: int, depth: int) -> str:
    if layer == 0:
        return (
            "0 would be the embeddings, which are no layer: layer n is the output of the n-th "
            "decoder layer. If your numbers start at 0, add 1 to each."
        )
    if layer == depth + 1:
        return (
            f"{layer} counts the embeddings as layer 1; they are no layer, and the last layer is "
            f"{depth}. If your numbers start with the embeddings, subtract 1 from each."
        )
    return f"Layer n is the output of the n-th decoder layer; the last is {depth}."


class LayerStates:
    """Notes the outputs of some decoder layers while a model runs.

        with LayerStates(model, [2, 4]) as states:
            body_of(model)(input_ids=ids)
        states[2]  # [B, L, d], with its gradient if the model ran with gradients

    model: any that `body_of` knows, with or without adapters. The first forward pass within the
    `with` counts. After it nothing is noted, so that a layer that is run again in the backward
    pass (gradient checkpointing) leaves the states as they are.
    Errors: TrainingError for a layer that does not exist, or whose output is not [B, L, d];
    ModelError for an unknown architecture.
    """

    def __init__(self, model: Any, layers: Iterable[int]) -> None:
        modules = layers_of(body_of(model))
        self._modules: dict[int, nn.Module] = {}
        for layer in sorted(set(layers)):
            if not 1 <= layer <= len(modules):
                raise TrainingError(
                    f"Layer {layer} does not exist; the model has layers 1 to {len(modules)}.",
                    _way_out(layer, len(modules)),
                )
            self._modules[layer] = modules[layer - 1]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> dict[int, Tensor]:
        states: dict[int, Tensor] = {}
        self._hooks = [
            module.register_forward_hook(_note(states, layer))
            for layer, module in self._modules.items()
        ]
        return states

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _note(states: dict[int, Tensor], layer: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        found: Tensor = output[0] if isinstance(output, tuple) else output
        if found.ndim != 3:
            raise TrainingError(
                f"The output of layer {layer} has the shape {list(found.shape)}, which is not "
                "one hidden state a token.",
                "Hidden states of this architecture cannot be compared; set their weights to 0.",
            )
        states.setdefault(layer, found)

    return hook


def hidden_mse(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of the mean over features of (student - teacher)^2.

    student, teacher: [N, d_t], the student's already projected. weights: [N] or None (all one).
    Returns a scalar, in fp32 or wider. Source: TinyBERT, Jiao et al. 2020, arXiv:1909.10351;
    the projection is that of FitNets, Romero et al. 2015, arXiv:1412.6550.
    """
    return weighted_sum(mse_rows(student, teacher), weights)


def hidden_cosine(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of 1 - cos(student, teacher); per token between 0 and 2.

    student, teacher: [N, d_t], the student's already projected. weights: [N] or None (all one).
    A token whose state on either side is (nearly) zero gives 1 and no gradient. Returns a scalar,
    in fp32 or wider. Source: DistilBERT, Sanh et al. 2019, arXiv:1910.01108.
    """
    return weighted_sum(cosine_rows(student, teacher), weights)


def mse_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each row: [N, d], [N, d] -> [N]."""
    return (_wide(student) - _wide(teacher)).square().mean(-1)


def cosine_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each row: [N, d], [N, d] -> [N]."""
    student, teacher = _wide(student), _wide(teacher)
    squares = torch.stack([student.square().sum(-1), teacher.square().sum(-1)])
    known = squares > SMALLEST_NORM**2
    # Replaced before the root: a gradient that is infinite would survive `where` as 0 * inf.
    scales = torch.where(known, squares, 1.0).rsqrt().unsqueeze(-1)
    # Half the squared distance of unit vectors is 1 - cosine, without its cancellation near 0.
    values = 0.5 * (student * scales[0] - teacher * scales[1]).square().sum(-1)
    return torch.where(known.all(0), values, 1.0)


class Projection(nn.Module):
    """One linear map without bias for each pair, from the student's width to the teacher's.

    Starts as the (rectangular) identity: student and teacher share features where one was cut from
    the other, and no random number is drawn, so that a training with a projection sees the same
    random numbers as one without. Weights are fp32. It stands outside the student, is trained
    with it and left behind: it is never part of an exported model.
    """

    def __init__(
        self, pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int
    ) -> None:
        super().__init__()
        self.maps = nn.ParameterDict(
            {
                str(student): nn.Parameter(torch.eye(teacher_width, student_width))
                for student, _ in pairs
            }
        )

    def forward(self, states: Tensor, layer: int) -> Tensor:
        """[..., d_s] states of the student's layer -> [..., d_t], in the map's precision."""
        weight = self.maps[str(layer)]
        return F.linear(states.to(weight.dtype), weight)


def projection_for(
    pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int, asked: bool = False
) -> Projection | None:
    """The projection that these widths need; None where they are equal and none is asked for."""
    if student_width == teacher_width and not asked:
        return None
    return Projection(pairs, student_width, teacher_width)


def hidden_sums(
    pairs: Sequence[tuple[int, int]],
    projection: Projection | None,
    student_states: Mapping[int, Tensor],
    teacher_states: Mapping[int, Tensor],
    positions: Tensor,
    weights: Tensor,
    *,
    mse: bool,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    """Mean over pairs of the weighted sum over tokens: of squared errors, of cosine distances.

    pairs: (student layer, teacher layer), from 1, at least one. student_states: layer ->
    [B, L, d_s]; teacher_states: layer -> [B, L, d_t], which take no gradient. positions: [N] int64
    into the [B * L] flattened states; weights: [N] fp32. What is not asked for is exactly 0 and
    has no gradient, and tokens whose weight is 0 are not touched.
    """
    asked = weights.nonzero()[:, 0]
    positions, weights = positions[asked], weights[asked]
    squares = torch.zeros((), device=weights.device)
    distances = torch.zeros((), device=weights.device)
    for student_layer, teacher_layer in pairs:
        student = student_states[student_layer].flatten(0, 1)[positions]
        teacher = teacher_states[teacher_layer].detach().flatten(0, 1)[positions]
        if projection is not None:
            student = projection(student, student_layer)
        if mse:
            squares = squares + hidden_mse(student, teacher, weights)
        if cosine:
            distances = distances + hidden_cosine(student, teacher, weights)
    return squares / len(pairs), distances / len(pairs)


def _wide(states: Tensor) -> Tensor:
    """In fp32, or as it is where it is wider: squares of bf16 states would lose what counts."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
