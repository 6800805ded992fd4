"""Cut a smaller model out of a larger one by dropping decoder layers, chosen by measurement.

In: a decoder-only transformers model and calibration token ids. Out: each layer's influence, the
layers to drop, the model without them. Works on the architectures that `body.py` knows.
Knows nothing of training, data sets or stages.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.body import KNOWN, body_of, layers_of, norm_of, put_layers
from potstill.models.output import OutputLayer, output_layer, summed_kl
from potstill.models.quantised import weights_in
from potstill.models.targets import Target

REFER_BY_NUMBER = ("num_kv_shared_layers", "mlp_only_layers", "scale_attn_by_inverse_layer_idx")
"""Fields of configurations that make a layer depend on its number."""
MEASURED_TOKENS = 384
"""Predictions on which a candidate's KL is measured; the output layer is the dear part of it."""
CANDIDATES = 8
"""Layers that are tried in a round of the greedy choice, from the second round on."""


@dataclass(frozen=True)
class Dropped:
    """One removal of the greedy choice: the layer, by its number in the intact model."""

    layer: int
    kl: float
    """KL(intact model || model without this and all earlier removals), nats per token."""


@dataclass(frozen=True)
class Calls:
    """What a body does with one batch: the first layer's input, each layer's other arguments, and
    the normed states at the end."""

    first_input: Tensor
    arguments: list[dict[str, Any]]
    last: Tensor


@dataclass(frozen=True)
class _Traced:
    """One calibration batch: each layer's other arguments, and what the intact model says."""

    first_input: Tensor
    arguments: list[dict[str, Any]]
    measured: Tensor
    log_p: Tensor


def layer_influence(model: Any, batches: Iterable[Tensor]) -> list[float]:
    """1 - cosine of each decoder layer's input and output, averaged over tokens.

    batches: token ids [B, L] each, without padding. Returns one figure a layer, 0 for a layer
    that changes nothing (at most 2). Source: ShortGPT's Block Influence, Men et al. 2024,
    arXiv:2403.03853, equation 1.
    """
    layers = layers_of(body_of(model))
    sums = [0.0] * len(layers)
    tokens = 0

    def note(number: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = states_of(args[0] if args else kwargs["hidden_states"]).float()
            cosine = F.cosine_similarity(before, states_of(output).float(), dim=-1)
            sums[number] += float((1 - cosine).sum())

        return hook

    hooks = [
        layer.register_forward_hook(note(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            for ids in batches:
                body_of(model)(input_ids=ids, use_cache=False)
                tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ModelError("There is no calibration text to measure the layers on.")
    return [total / tokens for total in sums]


def least_influential(influence: Sequence[float], count: int) -> list[int]:
    """The `count` layers with the least influence, the least first."""
    return sorted(range(len(influence)), key=lambda layer: (influence[layer], layer))[:count]


def greedy_drops(
    model: Any,
    batches: Sequence[Tensor],
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Dropped]:
    """Drop, again and again, the layer whose removal raises the KL to the intact model least.

    batches: token ids [B, L] each, without padding. Returns `count` removals in their order.
    Two things make it fast: the inputs of all layers are computed once a round, so that only the
    layers behind a removed one are run for it; and after the first round only the `CANDIDATES`
    that did the least harm when they were last tried are tried again.
    """
    body = body_of(model)
    check_count(count, len(layers_of(body)))
    output = output_layer(model).detached()
    with torch.no_grad():
        traced = _trace(body, output, batches)
        kept = list(range(len(layers_of(body))))
        # What removing each layer added to the KL when it was last tried.
        harm = dict.fromkeys(kept, 0.0)
        kl, removals = 0.0, list[Dropped]()
        for removal in range(count):
            inputs = [_inputs_of(body, kept, batch) for batch in traced]
            tried = sorted(kept, key=lambda layer: (harm[layer], layer))
            tried = tried if removal == 0 else tried[:CANDIDATES]
            found = {
                layer: _kl_without(body, output, kept, layer, inputs, traced) for layer in tried
            }
            harm.update({layer: value - kl for layer, value in found.items()})
            best = min(found, key=lambda layer: (found[layer], layer))
            kl = found[best]
            kept.remove(best)
            removals.append(Dropped(best, kl))
            progress(removal + 1, count)
    return removals


def drops_for(model: Any, target: Target) -> int:
    """The fewest layers to drop so that the target is met.

    Errors: ModelError if embeddings and one layer alone are more than that.
    """
    layers = layers_of(body_of(model))
    total = left = parameters_of(model) - (unread_parameters(model) if target.reading else 0)
    sizes = sorted(parameters_of(layer) for layer in layers)
    count = 0
    while left > target.limit:
        if count == len(sizes) - 1:
            raise ModelError(
                f"{target.said} leaves {target.limit:,.0f} weights, but embeddings and one layer "
                f"are {left:,} ({left / total:.0%}).",
                "Raise the target, or set distill.student.axes: both.",
            )
        left -= sizes[count]  # the smallest, so that the promise holds for any choice of layers
        count += 1
    return count


def unread_parameters(model: Any) -> int:
    """Weights that are not read for one new token: the other rows of an untied embedding."""
    embeddings = model.get_input_embeddings().weight
    if embeddings is getattr(model.get_output_embeddings(), "weight", None):
        return 0
    return int((embeddings.shape[0] - 1) * embeddings.shape[1])


def drop_layers(model: Any, layers: Iterable[int]) -> Any:
    """Remove these decoder layers from the model, in place, and return it.

    The rest is renumbered (`layer_idx`), and the configuration follows: `num_hidden_layers`, and
    every list in it that has one entry a layer, such as `layer_types`.
    Errors: ModelError for an unknown architecture, layers that do not exist, or all of them.
    """
    body = body_of(model)
    layers_before = layers_of(body)
    before = len(layers_before)
    gone = set(layers)
    check_count(len(gone), before)
    if not gone <= set(range(before)):
        raise ModelError(f"The model has layers 0 to {before - 1}, not {sorted(gone)}.")
    kept = [number for number in range(before) if number not in gone]
    follow_layers(model, model.config.get_text_config(), kept)
    put_layers(body, (layers_before[number] for number in kept))
    for number, layer in enumerate(layers_of(body)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]
    return model


def follow_layers(model: Any, config: Any, kept: Sequence[int]) -> None:
    """Make the model's text configuration (or a copy of it) say that only these layers are left.

    Errors: ModelError where layers refer to each other by number.
    """
    before = len(layers_of(body_of(model)))
    shared = [name for name in REFER_BY_NUMBER if _set(config, name)]
    if shared or config.num_hidden_layers != before:
        raise ModelError(
            f"The layers of {type(model).__name__} refer to each other by number "
            f"({', '.join(shared) or 'num_hidden_layers'}), so none can be dropped.",
            KNOWN,
        )
    config.num_hidden_layers = len(kept)
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == before:
            setattr(config, name, [value[number] for number in kept])


def parameters_of(model: Any) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(weights_in(parameter) for parameter in model.parameters())


def check_count(count: int, layers: int) -> None:
    if not 0 <= count < layers:
        raise ModelError(
            f"{count} of {layers} layers cannot be dropped; at least one must stay.",
            "Lower distill.student.drop_layers.",
        )


def _set(config: Any, name: str) -> bool:
    return bool(getattr(config, name, None))


def calls_of(body: Any, ids: Tensor) -> Calls:
    """Run a body over token ids [B, L], noting what its layers are given."""
    inputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs.append(given.pop("hidden_states"))
        arguments.append(given)

    layers = layers_of(body)
    names = list(inspect.signature(layers[0].forward).parameters)  # GPT-2's are given by position
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        last = body(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return Calls(inputs[0], arguments, last)


def states_of(output: Any) -> Tensor:
    """A layer's hidden states; some architectures wrap them in a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _trace(body: Any, output: OutputLayer, batches: Sequence[Tensor]) -> list[_Traced]:
    """Run the intact model once, noting what each layer is given besides its hidden states."""
    total = sum(ids.numel() for ids in batches)
    if not total:
        raise ModelError("There is no calibration text to measure the layers on.")
    stride = max(1, math.ceil(total / MEASURED_TOKENS))
    traced = []
    for ids in batches:
        calls = calls_of(body, ids)
        measured = torch.arange(stride - 1, ids.numel(), stride, device=ids.device)
        log_p = output.log_probabilities(calls.last.flatten(0, 1)[measured])
        traced.append(_Traced(calls.first_input, calls.arguments, measured, log_p))
    return traced


def _inputs_of(body: Any, kept: Sequence[int], batch: _Traced) -> dict[int, Tensor]:
    """The input of every kept layer, in the model that is left."""
    states, inputs, layers = batch.first_input, {}, layers_of(body)
    for layer in kept:
        inputs[layer] = states
        states = states_of(layers[layer](states, **batch.arguments[layer]))
    return inputs


def _kl_without(
    body: Any,
    output: OutputLayer,
    kept: Sequence[int],
    removed: int,
    inputs: Sequence[dict[int, Tensor]],
    traced: Sequence[_Traced],
) -> float:
    """KL(intact || kept without `removed`) in nats per measured token."""
    total, tokens, layers = 0.0, 0, layers_of(body)
    for before, batch in zip(inputs, traced, strict=True):
        states = before[removed]
        for layer in kept:
            if layer > removed:
                states = states_of(layers[layer](states, **batch.arguments[layer]))
        last = norm_of(body)(states).flatten(0, 1)[batch.measured]
        total += summed_kl(batch.log_p.__getitem__, output, last)
        tokens += len(last)
    return total / max(1, tokens)
