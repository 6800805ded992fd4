"""How much arithmetic a training step is, and how much of it this machine can do.

In: models, a batch. Out: useful floating-point operations (padding and recomputation are none),
and the rate of this machine's own large matrix products. Knows nothing of time or losses.
Counts are multiply-adds times two, of matrix products and attention alone, as in Chowdhery et al.
2022 (PaLM, arXiv:2204.02311), appendix B.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from potstill.distill.batches import MicroBatch
from potstill.models.body import body_of, layers_of
from potstill.models.output import output_layer
from potstill.models.quantised import weights_in

SIDE = 4096
"""Of the square product by which a machine is measured; smaller ones do not reach its rate."""


@dataclass(frozen=True)
class Cost:
    """Operations of one forward pass of a model."""

    a_token: float = 0.0
    """Of its layers' matrices, for each token."""
    a_pair: float = 0.0
    """Of attention, for each pair of a token and one that it sees."""
    a_prediction: float = 0.0
    """Of its output layer, for each token whose logits are needed."""

    @classmethod
    def of(cls, model: Any) -> Cost:
        """Those of a decoder."""
        body = body_of(model)
        config = body.config
        matrices = sum(weights_in(one) for one in layers_of(body).parameters() if one.ndim >= 2)
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(
            2.0 * matrices,
            4.0 * width * len(layers_of(body)),
            2.0 * output_layer(model).weight.numel(),
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.a_token + other.a_token,
            self.a_pair + other.a_pair,
            self.a_prediction + other.a_prediction,
        )

    def times(self, share: float) -> Cost:
        """Of a model that does a share of the passes."""
        return Cost(share * self.a_token, share * self.a_pair, share * self.a_prediction)

    def forward(self, batch: MicroBatch, predictions: int) -> float:
        """One pass over the batch, with the logits of so many tokens."""
        tokens, pairs = batch_size(batch)
        return tokens * self.a_token + pairs * self.a_pair + predictions * self.a_prediction


def batch_size(batch: MicroBatch) -> tuple[int, int]:
    """Real tokens that are computed, and pairs of one and another that it sees, itself too."""
    tokens = pairs = 0
    beginnings = {span.shared_start: span.shared for span in batch.spans if span.shared}
    for shared in beginnings.values():
        tokens, pairs = tokens + shared, pairs + shared * (shared + 1) // 2
    for span in batch.spans:
        own = span.length - span.shared
        tokens, pairs = tokens + own, pairs + own * span.shared + own * (own + 1) // 2
    return tokens, pairs


def step_flops(batch: MicroBatch, student: Cost, teacher: Cost | None) -> float:
    """Of one batch's training: student forward and backward (twice as much), teacher forward.

    teacher None: nothing is asked of it; of a file of states its `a_prediction` alone is not 0.
    """
    taught = int((batch.kd_counts != 0).sum())
    scored = int(((batch.kd_counts != 0) | (batch.ce_counts != 0)).sum())
    total = 3.0 * student.forward(batch, scored)
    if teacher is not None:
        total += teacher.forward(batch, taught)
    return total


@lru_cache
def machine_flops(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Operations a second of a large square product here: the best of three.

    threads: how many it may use (PyTorch's own setting, named here so that it is remembered by it).
    """
    one, other = (torch.ones(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        float((one @ other)[0, 0])  # waits for a GPU too
        best = max(best, 2.0 * SIDE**3 / (time.perf_counter() - began))
    return best
