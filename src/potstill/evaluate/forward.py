"""Hidden states of many conversations, each shared beginning computed once.

In: a causal language model and the token ids of the examples. Out: last hidden states, float32
logits of chosen rows, the attention cache of any prefix. Knows nothing of scores or answers.

Test questions about the same passage begin with the same tokens, and a causal model gives a
shared beginning the same states whatever follows. `Plan` sorts the examples so that neighbours
share as much as they can; `PrefixReader` then feeds each model only what is new. On questions
over shared passages that is several times less work, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from potstill.errors import ModelError
from potstill.models.output import OutputLayer, output_layer
from potstill.models.prefixes import common_prefix

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch, heads, positions, width]."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Plan:
    """In which order examples are read, and how much each shares with the one before.

    `shared[k]` counts the rows of example `order[k]` whose input and target tokens all equal
    those of `order[k - 1]`: their states and scores are the same and are not computed again.
    """

    order: tuple[int, ...]
    shared: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Plan:
        """Sort by token ids (ties by position, so the order is always the same)."""
        order = sorted(range(len(sequences)), key=lambda index: (list(sequences[index]), index))
        shared = [0] * len(order)
        for place in range(1, len(order)):
            common = common_prefix(sequences[order[place - 1]], sequences[order[place]])
            # row r predicts token r + 1, so the last common token is still needed as an input
            shared[place] = max(0, common - 1)
        return cls(tuple(order), tuple(shared))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.order, self.shared, strict=True))


def head_of(model: Any, vocabulary: int) -> OutputLayer:
    """A model's output layer in float32, cut to the words of the tokenizer.

    Rows that no token has (padding to a round number) are not words, and their logits would
    distort every probability. Errors: ModelError if it has fewer.
    """
    layer = output_layer(model).detached()
    if layer.words < vocabulary:
        raise ModelError(
            f"The model's output layer has {layer.words} rows for a vocabulary of {vocabulary}.",
            "The model and its tokenizer do not belong together.",
        )
    return layer.cut(vocabulary, torch.float32)


class PrefixReader:
    """Reads conversations one after the other, re-using the states of the common beginning."""

    def __init__(self, model: Any) -> None:
        self._body = model.base_model
        self._layers: Layers = []
        self._hidden: Tensor | None = None

    def read(self, ids: Sequence[int], shared: int) -> Tensor:
        """Last hidden states [len(ids), width]; the first `shared` come from the last read."""
        cache = DynamicCache(cut(self._layers, shared)) if shared else DynamicCache()
        output = self._body(
            input_ids=torch.tensor([list(ids[shared:])]),
            position_ids=torch.arange(shared, len(ids)).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
        )
        new = output.last_hidden_state[0]
        old = self._hidden[:shared] if shared and self._hidden is not None else new[:0]
        self._hidden = torch.cat([old, new])
        self._layers = layers_of(cache)
        return self._hidden

    def prefix(self, length: int) -> Layers:
        """A copy of the attention cache of the last read's first `length` tokens."""
        return [(keys.clone(), values.clone()) for keys, values in cut(self._layers, length)]


def layers_of(cache: Any) -> Layers:
    """The tensors of a transformers cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def cut(layers: Layers, length: int) -> Layers:
    """Views of the first `length` positions."""
    return [(keys[:, :, :length], values[:, :, :length]) for keys, values in layers]


def check_model(model: Any, head: OutputLayer, ids: Sequence[int], name: str) -> None:
    """Refuse a model that this file would measure wrongly.

    The last logits by way of a split read and `head` must equal the model's own. They do not
    if it changes its logits in a way that is not known, or keeps a state that cannot be cut at
    any position. Errors: ModelError, also for logits that are not numbers.
    """
    probe = list(ids[:64])
    half = len(probe) // 2
    reader = PrefixReader(model)
    reader.read(probe[: half + 1], 0)
    ours = head.logits(reader.read(probe, half)[-1:])
    own = model(input_ids=torch.tensor([probe])).logits[0, -1:, : head.words].float()
    if not (torch.isfinite(ours).all() and torch.isfinite(own).all()):
        raise not_finite(name)
    worst = float((ours - own).abs().max())
    if worst > _TOLERANCE[model.dtype] * max(1.0, float(own.abs().max())):
        raise ModelError(
            f"The {name} model cannot be measured: its logits differ by {worst:.3g} from what its "
            "output layer gives.",
            "Models that are not attention-only, or change their logits in a way of their own, "
            "are not supported here.",
        )


def not_finite(name: str) -> ModelError:
    """The error for a model that computes NaN or infinity."""
    return ModelError(
        f"The {name} model computes logits that are not finite numbers.",
        "Its weights are damaged or its training diverged: lower distill.learning_rate, or use "
        "dtype float32.",
    )
