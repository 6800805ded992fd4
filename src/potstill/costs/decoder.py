"""A decoder's sizes, and what a pass over it computes, reads and keeps.

In: a shape, numbers of tokens. Out: operations and bytes. Knows no hardware and no stage.

Operations are multiply-adds times two of matrix products and attention alone, as in Chowdhery et
al. 2022 (PaLM, arXiv:2204.02311), appendix B; the same count as `distill/flops.py` makes of a
loaded model, which a test holds it against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache

from potstill.costs.cluster import table
from potstill.errors import ModelError
from potstill.models.shape import Shape, Sizes, shape_of_config
from potstill.models.size import expected_parameters, folder_config

KEPT_OF_HIDDEN, KEPT_OF_QUERIES, KEPT_OF_KEYS, KEPT_OF_INNER = 26, 4, 4, 8
"""Bytes that a layer keeps of a token for its backward pass, for each of its features. Hidden: of
two norms over an fp32 stream the input and the normalised in 4 bytes each, and what queries, keys,
values, gate and up each read in 2, as autocast casts for every product. Queries and attention's
output, keys and values, and gate, up, activation and their product: all in 2. Attention keeps no
probabilities (Dao et al. 2022, arXiv:2205.14135). Counted as Korthikanti et al. 2022
(arXiv:2205.05198) count; a test holds it against what autograd saves."""
KEPT_OF_INPUT = 4
"""Bytes a feature that a layer keeps whose rest is computed again: its fp32 input."""


class Decoder(Sizes):
    """Sizes of a decoder-only transformer with gated MLPs, and what they cost."""

    @classmethod
    def of(cls, shape: Shape) -> Decoder:
        """Of a shape, norms and biases left out."""
        return cls(**{one.name: getattr(shape, one.name) for one in fields(cls)})

    @property
    def queries(self) -> int:
        """Width of a layer's queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a layer's keys; its values have the same."""
        return self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Of one layer's matrices."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def output_weights(self) -> int:
        """Of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All, tied ones once; norms and biases are left out."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.output_weights

    def forward(self, tokens: float, seen: float, predictions: float) -> float:
        """Operations of a pass. seen: how many tokens each one sees, in the mean (half the length
        of a causal row); predictions: tokens whose logits are needed."""
        pairs = 4.0 * self.layers * self.queries * seen
        body = 2.0 * self.layers * self.layer_weights + pairs
        return tokens * body + predictions * 2.0 * self.output_weights

    def cache_bytes(self, number: int = 2) -> float:
        """Keys and values of one token while text is written (Pope et al. 2022,
        arXiv:2211.05102)."""
        return 2.0 * number * self.layers * self.keys

    def kept_bytes(self, *, checkpointed: bool = False) -> float:
        """Of one token, for the backward pass through the layers; the loss keeps no logits
        (`distill/fused.py`)."""
        layer = (
            KEPT_OF_HIDDEN * self.hidden
            + KEPT_OF_QUERIES * self.queries
            + KEPT_OF_KEYS * self.keys
            + KEPT_OF_INNER * self.intermediate
        )
        if checkpointed:  # one layer at a time is computed again (Chen et al. 2016, 1604.06174)
            return float(self.layers * KEPT_OF_INPUT * self.hidden + layer)
        return float(self.layers * layer)

    def shrunk(self, weights: float) -> Decoder:
        """One of the same vocabulary with about so many weights: width and depth alike smaller,
        as large models and small ones of a family differ."""
        best = self
        for eighths in range(8 * self.layers, 7, -1):
            share = eighths / (8 * self.layers)
            hidden = max(8, round(self.hidden * share / 8) * 8)
            best = Decoder(
                self.vocabulary,
                max(1, round(self.layers * share)),
                hidden,
                max(8, round(self.intermediate * share / 8) * 8),
                max(1, round(self.heads * share)),
                max(1, round(self.kv_heads * share)),
                self.head_dim,
                self.tied,
            )
            if best.weights <= weights:
                break
        return best


@lru_cache(maxsize=1)
def published() -> Mapping[str, Decoder]:
    """The decoders of `models.yaml`, by name, from small to large."""
    rows = table("models").items()
    return {name: Decoder(**{k: v for k, v in row.items() if k != "source"}) for name, row in rows}


def of_size(weights: float) -> Decoder:
    """A decoder of about so many weights: the smallest published one that is no smaller, scaled."""
    known = published().values()
    larger = next((one for one in known if one.weights >= 0.97 * weights), None)
    if larger is not None:
        return larger if larger.weights <= 1.03 * weights else larger.shrunk(weights)
    largest = max(known, key=lambda one: one.weights)
    more = math.ceil(largest.layers * weights / largest.weights)
    return Decoder(**{**vars(largest), "layers": more})


def of_reference(reference: str) -> Decoder:
    """Of a model as a recipe names it: its own configuration, else one of its size.

    Errors: ModelError for a reference without sense.
    """
    try:
        return Decoder.of(shape_of_config(folder_config(reference) or {}))
    except (ModelError, KeyError, TypeError, ValueError):
        return of_size(expected_parameters(reference))
