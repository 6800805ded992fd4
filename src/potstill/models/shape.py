"""The sizes of a decoder, and how many weights they come to.

In: the fields of a model's configuration. Out: a `Shape` that counts its weights exactly, before
any model of that shape exists. Knows the families whose widths can be cut, as how many norms and
biases a layer has is a matter of the family. Reads no files and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import ModelError


@dataclass(frozen=True)
class Family:
    """What configurations of a kind do not say."""

    norms: int = 2
    """Norms over the hidden size in a layer."""
    head_norms: int = 0
    """Norms over the head's size in a layer: of queries and keys."""
    input_bias: bool | None = False
    """Bias of queries, keys, values; None: as `attention_bias` says."""
    output_bias: bool | None = False
    """Bias of attention's output; None: as `attention_bias` says."""
    mlp_bias: bool | None = False
    """None: as `mlp_bias` says."""
    unit_offset: bool = False
    """Norms multiply by 1 + weight, and embeddings by the root of the hidden size (Gemma)."""


FAMILIES = {
    "llama": Family(input_bias=None, output_bias=None, mlp_bias=None),
    "mistral": Family(),
    "qwen2": Family(input_bias=True),
    "qwen3": Family(head_norms=2, input_bias=None, output_bias=None),
    "gemma": Family(input_bias=None, output_bias=None, unit_offset=True),
    "gemma2": Family(norms=4, input_bias=None, output_bias=None, unit_offset=True),
    "gemma3_text": Family(
        norms=4, head_norms=2, input_bias=None, output_bias=None, unit_offset=True
    ),
    "smollm3": Family(input_bias=None, output_bias=None, mlp_bias=None),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder: `heads` for queries, `kv_heads` for keys and values."""

    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """The output layer is the embeddings."""


@dataclass(frozen=True)
class Shape(Sizes):
    """A decoder's sizes, and what its family adds to them."""

    family: str
    input_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        family, hidden = FAMILIES[self.family], self.hidden
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        count = 2 * hidden * (queries + keys) + 3 * hidden * self.intermediate
        count += family.norms * hidden + family.head_norms * self.head_dim
        count += self.input_bias * (queries + 2 * keys) + self.output_bias * hidden
        return count + self.mlp_bias * (2 * self.intermediate + hidden)

    @property
    def parameters(self) -> int:
        """All weights, tied ones counted once."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def read_parameters(self) -> int:
        """Weights that are read for one new token: all but the rows of an untied embedding that
        other tokens have. What decoding costs, where it waits for memory."""
        return self.parameters - (0 if self.tied else (self.vocabulary - 1) * self.hidden)

    def sizes(self) -> dict[str, int]:
        """The sizes that surgery may change, and what they come to, by name."""
        names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")
        return {name: getattr(self, name) for name in (*names, "parameters")}


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a decoder's configuration describes (`config.to_dict()`, or config.json).

    Errors: ModelError for a family that is not in `FAMILIES`, KeyError for a field that is missing.
    """
    name = str(config.get("model_type"))
    family = FAMILIES.get(name)
    if family is None:
        raise ModelError(
            f"The widths of the architecture {name!r} cannot be cut; known are "
            f"{', '.join(FAMILIES)}.",
            "Set distill.student.axes: depth.",
        )

    def said(answer: bool | None, field: str) -> bool:
        return bool(config.get(field)) if answer is None else answer

    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Shape(
        family=name,
        vocabulary=int(config["vocab_size"]),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        tied=bool(config["tie_word_embeddings"]),
        input_bias=said(family.input_bias, "attention_bias"),
        output_bias=said(family.output_bias, "attention_bias"),
        mlp_bias=said(family.mlp_bias, "mlp_bias"),
    )
