"""Fit what is left of a decoder to what the whole one computes, layer by layer, by least squares.

In: the whole decoder, the one carved out of it, what was kept, calibration token ids. Out: the
smaller one, its projections changed so that on that text its residual stream is as near to the
whole one's as a linear map of what it has can bring it. No gradients, no training.
Knows nothing of how the parts were chosen.

For a projection with weights W0 that gets inputs X in the smaller model and should give Y:

    W = argmin |Y - X W^T|^2 + r |W - W0|^2,    r = RIDGE * trace(X^T X) / inputs

Y is what the whole model has at that place. For the last projections of attention and MLP in models
that add them to the residual stream as they are, Y is what is still missing there: the whole
model's stream behind the place (and behind all dropped layers that follow) minus the smaller one's
before it, so that each fit also makes up for what the earlier ones left. The layers of both are
run in turn, so that only the states between two layers are held, and each half of a layer once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.models.body import body_of
from potstill.models.surgery import Calls, calls_of, states_of
from potstill.models.width import Parts, rows_of

RIDGE = 0.05
"""Pull towards the weights as they were, relative to the inputs' mean square."""
READERS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a layer's pass where what is asked for is known."""


@dataclass
class _Stream:
    """One calibration text on its way through both models."""

    calls: Calls
    whole: Tensor
    """[B, L, hidden] of the whole model before the next kept layer."""
    small: Tensor
    """[B, L, fewer] of the smaller one there."""
    attended: Tensor | None = None
    """[B, L, hidden] that the next kept layer of the whole model gives its MLP's norm."""
    ahead: Tensor | None = None
    """[B, L, hidden] of the whole model behind that layer and the dropped ones after it."""
    written: dict[str, Tensor] = field(default_factory=dict)
    """What the smaller one's attention and MLP of this layer write, as far as they are fitted."""


@torch.no_grad()
def refit(
    whole: Any, small: Any, parts: Parts, batches: Sequence[Tensor], ridge: float = RIDGE
) -> Any:
    """Change `small`'s projections in place, and return it. batches: token ids [B, L] each.

    Both models in evaluation mode and float32 (or float64). Errors: ModelError for states that are
    not finite.
    """
    body, lean = body_of(whole), body_of(small)
    channels = torch.tensor(parts.channels, device=whole.device)
    streams = [
        _Stream(calls := calls_of(body, ids), calls.first_input, calls_of(lean, ids).first_input)
        for ids in batches
    ]
    fewer = len(channels) < int(whole.config.get_text_config().hidden_size)
    after = [*parts.layers[1:], len(body.layers)]
    # What comes before the first kept layer is made up for in it.
    for stream in streams:
        stream.whole = _run(body, range(parts.layers[0]), stream.whole, stream.calls)
    for place, (number, following) in enumerate(zip(parts.layers, after, strict=True)):
        layer, lean_layer = body.layers[number], lean.layers[place]
        rows = _rows(parts, place, small)
        for stream in streams:
            _look_ahead(body, number, following, stream)
        for part, names in READERS:
            if fewer:
                _fit_readers(layer, lean_layer, part, names, number, streams, rows, ridge)
            _fit_writer(layer, lean_layer, part, number, streams, channels, ridge)
        for stream in streams:
            assert stream.ahead is not None
            stream.whole = stream.ahead
            with _known(lean_layer, stream):
                given = stream.calls.arguments[number]
                stream.small = states_of(lean_layer(stream.small, **given))
            stream.written.clear()
    return small


def _look_ahead(body: Any, number: int, following: int, stream: _Stream) -> None:
    """Run the whole model to the next kept layer, once for all that is asked of it here."""
    found: list[Tensor] = []
    norm = body.layers[number].post_attention_layernorm
    handle = norm.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        stream.ahead = _run(body, range(number, following), stream.whole, stream.calls)
    finally:
        handle.remove()
    (stream.attended,) = found


def _fit_readers(
    layer: Any,
    lean: Any,
    part: str,
    names: Sequence[str],
    number: int,
    streams: Sequence[_Stream],
    rows: dict[str, Tensor],
    ridge: float,
) -> None:
    """The projections that read the same normed states, of attention or of the MLP."""
    ours = [getattr(getattr(lean, part), name) for name in names]
    theirs = [getattr(getattr(layer, part), name) for name in names]
    fits = [_Fit(one) for one in ours]
    for stream in streams:
        arguments = stream.calls.arguments[number]
        with _known(lean, stream):
            (read,) = _inputs_of(lean, [ours[0]], stream.small, arguments)
        (given,) = _inputs_of(layer, [theirs[0]], stream.whole, arguments)
        for fit, name, their in zip(fits, names, theirs, strict=True):
            fit.add(read, their(given)[..., rows[name]])
    for fit in fits:
        fit.solve(ridge)


def _fit_writer(
    layer: Any,
    lean: Any,
    part: str,
    number: int,
    streams: Sequence[_Stream],
    channels: Tensor,
    ridge: float,
) -> None:
    """The projection that writes to the residual stream."""
    name = "o_proj" if part == "self_attn" else "down_proj"
    ours, theirs = getattr(getattr(lean, part), name), getattr(getattr(layer, part), name)
    normed = hasattr(layer, "pre_feedforward_layernorm")  # what is written passes another norm
    fit, reads = _Fit(ours), []
    for stream in streams:
        arguments = stream.calls.arguments[number]
        assert stream.attended is not None
        assert stream.ahead is not None
        with _known(lean, stream):
            before, read = _inputs_of(
                lean,
                [
                    lean.input_layernorm if part == "self_attn" else lean.post_attention_layernorm,
                    ours,
                ],
                stream.small,
                arguments,
            )
        if normed:
            (given,) = _inputs_of(layer, [theirs], stream.whole, arguments)
            fit.add(read, theirs(given)[..., channels])
        else:
            reached = stream.attended if part == "self_attn" else stream.ahead
            fit.add(read, reached[..., channels] - before)
        reads.append(read)
    fit.solve(ridge)
    for stream, read in zip(streams, reads, strict=True):
        stream.written[part] = ours(read)


@contextmanager
def _known(layer: Any, stream: _Stream) -> Iterator[None]:
    """Within it, the parts of `layer` whose output is known give that instead of computing it."""
    with ExitStack() as undo:
        for part, output in stream.written.items():
            module = getattr(layer, part)
            said = (output, None) if part == "self_attn" else output
            module.forward = lambda *_, said=said, **__: said
            undo.callback(delattr, module, "forward")
        yield


class _Fit:
    """The sums of one projection's normal equations."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear
        size = linear.in_features
        device = linear.weight.device
        self.squares = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.missing = torch.zeros(linear.out_features, size, dtype=torch.float64, device=device)

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """Inputs [..., in] and what should come out of them [..., out]."""
        read = read.flatten(0, -2)
        missing = wanted.flatten(0, -2) - self.linear(read)
        self.squares += read.T @ read
        self.missing += missing.T @ read

    def solve(self, ridge: float) -> None:
        """Add the best change to the weights. Errors: ModelError for states that are not finite."""
        if not (torch.isfinite(self.squares).all() and torch.isfinite(self.missing).all()):
            raise ModelError(
                "The model's states on the calibration text are not finite, so nothing is fitted "
                "to them.",
                "Its weights may be damaged: copy them again.",
            )
        pull = ridge * float(self.squares.diagonal().mean())
        if pull <= 0:
            return  # nothing ever comes in
        self.squares.diagonal().add_(pull)
        factor = torch.linalg.cholesky(self.squares)
        change = torch.cholesky_solve(self.missing.T, factor).T
        self.linear.weight.add_(change.to(self.linear.weight.dtype))


def _rows(parts: Parts, place: int, small: Any) -> dict[str, Tensor]:
    """Which outputs of the whole model's projections the smaller one's are."""
    size = int(small.config.get_text_config().head_dim)
    queries, keys = (rows_of(heads, size) for heads in (parts.heads[place], parts.kv_heads[place]))
    neurons = torch.tensor(parts.neurons[place])
    return {
        "q_proj": queries,
        "k_proj": keys,
        "v_proj": keys,
        "gate_proj": neurons,
        "up_proj": neurons,
    }


def _run(body: Any, layers: Sequence[int], states: Tensor, calls: Calls) -> Tensor:
    for number in layers:
        states = states_of(body.layers[number](states, **calls.arguments[number]))
    return states


def _inputs_of(
    layer: Any, modules: Sequence[Any], states: Tensor, arguments: dict[str, Any]
) -> list[Tensor]:
    """What modules in `layer`, in their order, are given when the layer is given `states`."""
    found: list[Tensor] = []

    def hook(_: Any, args: Any) -> None:
        found.append(args[0])
        if len(found) == len(modules):
            raise _Reached

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        layer(states, **arguments)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
