"""The output layer of a decoder: how hidden states become logits.

In: a transformers model. Out: an `OutputLayer`: weight, bias, scale and soft cap, as plain values
that others can multiply chunk by chunk. Knows nothing of losses or data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import ModelError

KL_TOKENS = 128
"""Of which a divergence holds the logits at once."""


@dataclass(frozen=True)
class OutputLayer:
    """logits = cap(scale * (h @ weight^T + bias)), cap(z) = softcap * tanh(z / softcap)."""

    weight: Tensor
    """[V, d]. With tied embeddings it is the embeddings' own parameter."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None
    """Of Gemma 2 (arXiv:2408.00118, section 2); None: logits are not capped."""

    @property
    def words(self) -> int:
        """V: rows of the weight; a vocabulary padded to a round number has fewer real ones."""
        return int(self.weight.shape[0])

    def cut(self, vocabulary: int, dtype: torch.dtype) -> OutputLayer:
        """The first `vocabulary` words, in `dtype`."""
        bias = None if self.bias is None else self.bias[:vocabulary].to(dtype)
        return replace(self, weight=self.weight[:vocabulary].to(dtype), bias=bias)

    def detached(self) -> OutputLayer:
        """The same without gradients."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def products(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """h @ weight^T + bias: [N, d] -> [N, V], before scale and cap; in `out` if given."""
        products = torch.mm(hidden, self.weight.T, out=out)
        return products if self.bias is None else products.add_(self.bias)

    def shape(self, products: Tensor) -> Tensor:
        """Scale and cap: products -> logits."""
        logits = products if self.scale == 1.0 else products * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def shape_gradient(self, logits: Tensor, grad: Tensor) -> Tensor:
        """dloss/dlogits -> dloss/dproducts, in place of `grad`."""
        if self.softcap is not None:
            grad = grad.mul_(1 - (logits / self.softcap).square())
        return grad if self.scale == 1.0 else grad.mul_(self.scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] of any dtype -> [N, V] in the weight's."""
        products = hidden.to(self.weight.dtype) @ self.weight.T
        return self.shape(products if self.bias is None else products + self.bias)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[N, d] of any dtype -> [N, V] in fp32."""
        return F.log_softmax(self.logits(hidden).float(), dim=-1)


def summed_kl(log_p: Callable[[slice], Tensor], output: OutputLayer, states: Tensor) -> float:
    """KL(p || what the layer makes of the states), in nats, summed over tokens.

    states: [N, d]; log_p(some): those tokens' log probabilities [n, V] in fp32. Few logits exist at
    once.
    """
    total = 0.0
    for start in range(0, len(states), KL_TOKENS):
        some = slice(start, start + KL_TOKENS)
        log_q = output.log_probabilities(states[some])
        total += float(F.kl_div(log_q, log_p(some), reduction="sum", log_target=True))
    return total


def output_layer(model: Any) -> OutputLayer:
    """The model's output layer. Errors: ModelError if it is none that is known."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise ModelError(
            f"The output layer of {type(model).__name__} has no weight of its own, which is not "
            "supported.",
            "Choose a decoder of the Llama, Qwen, Gemma or a like family.",
        )
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies,
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputLayer(head.weight, getattr(head, "bias", None), scale, softcap)
