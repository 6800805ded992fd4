"""Hidden states of many conversations, each shared beginning computed once.

In: a causal language model and the token ids of the examples. Out: last hidden states, the
attention cache of any prefix. Knows nothing of scores or answers.

Questions about the same passage begin with the same tokens, and a causal model gives a shared
beginning the same states whatever follows. `Plan` sorts the examples so that neighbours share as
much as they can; `PrefixReader` then feeds each model only what is new. On questions over shared
passages that is several times less work, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from potstill.models.prefixes import common_prefix

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch, heads, positions, width]."""


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
            input_ids=torch.tensor([list(ids[shared:])], device=self._body.device),
            position_ids=torch.arange(shared, len(ids), device=self._body.device).unsqueeze(0),
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
