"""What a sparse cache keeps of a distribution: its likeliest words, or draws from it.

In: hidden states and an output layer, or logits of N tokens. Out: `TopK` and `Samples`. Knows
nothing of rows, batches or files.

Everywhere p = softmax(logits / T). Samples follow "Sparse Logit Sampling" (Anshumann et al. 2025,
arXiv:2503.16870): words are drawn with probability p, so a word's importance weight is how often
it was drawn, and the weights' expectation is p; a truncated top-k, renormalised, is not. For the
squared error of such an estimate no other proposal than p is better. The draws are stratified:
one from each of m equal parts of the cumulative distribution. That keeps them unbiased and gives
no function of them a larger variance than independent draws have (Douc, Cappe, Moulines 2005,
arXiv:cs/0507025, section 3); the gradient's was 3.7 times smaller on SmolLM2-135M with m = 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.models.output import OutputLayer

LOGITS_BYTES = 32 << 20
"""Of the fp32 logits that exist at once; working on them takes as much again."""
CUMULATED_BYTES = 4 << 20
"""Of cumulative distributions in fp64: few enough to stay in the processor's cache."""
WORDS_AT_ONCE = 8192
"""Rows of the output layer that are converted to fp32 at once."""


class _Tokens:
    """Dataclasses whose every field is [N, ...]: chosen, spread and joined along N."""

    def __getitem__(self, index: Any) -> Self:
        """Some of the tokens."""
        return type(self)(*(value[index] for value in vars(self).values()))

    def spread(self, at: Tensor, count: int) -> Self:
        """`count` tokens, zero but at the places `at`."""
        values = vars(self).values()
        return type(self)(
            *(one.new_zeros(count, *one.shape[1:]).index_copy(0, at, one) for one in values)
        )

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class TopK(_Tokens):
    """The k likeliest words at a temperature T, likeliest first, and the mass of all others."""

    ids: Tensor
    """[N, k] int64, distinct in a row; a place that is not used repeats the row's first word."""
    log_p: Tensor
    """[N, k] fp32: log of softmax(logits / T); -inf in a place that is not used."""
    tail: Tensor
    """[N] fp32: log of the remaining mass; -inf if there is none."""


@dataclass(frozen=True)
class Samples(_Tokens):
    """An unbiased estimate of p = softmax(logits / T): E[sum_j weights_j onehot(ids_j)] = p."""

    ids: Tensor
    """[N, m] int64, distinct in a row; an unused place holds some word that was not drawn."""
    weights: Tensor
    """[N, m] fp32: share of the draws, 0 in an unused place. They sum to 1."""
    log_p: Tensor
    """[N, m] fp32: log p of the word, 0 in an unused place."""


Kept = Tensor | TopK | Samples
"""What a cache keeps of N tokens; a tensor is hidden states."""


def joined(parts: Sequence[Any]) -> Any:
    """Tokens after tokens; all parts are `Kept`, of one kind."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*map(torch.cat, fields))


def exact_logits(output: OutputLayer, states: Tensor, vocabulary: int) -> Tensor:
    """[N, d] -> [N, vocabulary] in fp32 whatever the layer's dtype: bf16 logits are 6 % of p off.

    The weight is converted part by part, so that no second one of its size exists.
    """
    states = states.float()
    logits = torch.empty(len(states), vocabulary, device=states.device)
    for first in range(0, vocabulary, WORDS_AT_ONCE):
        part = slice(first, min(first + WORDS_AT_ONCE, vocabulary))
        bias = None if output.bias is None else output.bias[part].float()
        words = replace(output, weight=output.weight[part].float(), bias=bias)
        logits[:, part] = words.logits(states)
    return logits


def top_k(logits: Tensor, count: int, temperature: float, among: Tensor | None = None) -> TopK:
    """The `count` likeliest words of each token, and the log of what is left.

    among: ids [C], C > 0, of the only words that may be told apart; None: all. The tail is
    summed from its own logits: 1 minus the others' sum would cancel to nothing.
    """
    logits = logits.float() / temperature
    logits -= logits.amax(-1, keepdim=True)  # so that log p is rounded by its own size
    if among is None:
        found, ids = logits.topk(count, dim=-1)
    else:
        found, places = logits[:, among].topk(min(count, len(among)), dim=-1)
        ids = among[places]
    tail = logits.scatter_(-1, ids, -torch.inf).logsumexp(-1)
    total = torch.logaddexp(found.logsumexp(-1), tail)
    log_p, unused = found - total.unsqueeze(-1), count - ids.shape[1]
    if unused:
        ids = torch.cat([ids, ids[:, :1].expand(-1, unused)], dim=1)
        log_p = F.pad(log_p, (0, unused), value=-torch.inf)
    return TopK(ids, log_p, tail - total)


def sample(logits: Tensor, temperature: float, uniforms: Tensor) -> Samples:
    """m stratified draws of each token; equal words are merged. uniforms: [N, m] fp64 in [0, 1)."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    count, vocabulary = uniforms.shape[1], log_p.shape[1]
    strata = torch.arange(count, device=log_p.device)
    ids = torch.empty(uniforms.shape, dtype=torch.int64, device=log_p.device)
    step = max(1, CUMULATED_BYTES // (8 * vocabulary))
    for first in range(0, len(ids), step):
        rows = slice(first, first + step)
        cumulated = log_p[rows].exp().cumsum(-1, dtype=torch.float64)
        total = cumulated[:, -1:]
        places = (strata + uniforms[rows]) / count * total
        # Below the total, and to the right of equal sums: a word without mass is never drawn.
        places = places.minimum(torch.nextafter(total, torch.zeros_like(total)))
        ids[rows] = torch.searchsorted(cumulated, places, right=True)
    # The strata ascend, so equal words stand side by side.
    new = torch.ones_like(ids, dtype=torch.bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    slots = new.cumsum(-1) - 1
    counts = torch.zeros_like(ids).scatter_add_(-1, slots, torch.ones_like(ids))
    merged = torch.zeros_like(ids).scatter_(-1, slots, ids)
    used = counts > 0
    return Samples(
        distinct(merged, used), counts.float() / count, log_p.gather(-1, merged).where(used, 0.0)
    )


def distinct(ids: Tensor, used: Tensor) -> Tensor:
    """Give unused places of [N, m] words that are not in their row; needs m words or more."""
    width = ids.shape[1]
    taken = torch.zeros(len(ids), width + 1, dtype=torch.bool, device=ids.device)
    taken.scatter_(1, ids.where(used, width).clamp(max=width), True)
    # Of the first m words at least as many are free as there are unused places.
    free = taken[:, :width].to(torch.uint8).argsort(dim=1, stable=True)
    order = ((~used).cumsum(1) - 1).clamp(min=0)
    return ids.where(used, free.gather(1, order))


def uniforms(seed: int, places: Tensor, count: int) -> Tensor:
    """[N, count] fp64 in [0, 1): a function of the seed and of each token's place [N], no more.

    SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
    """
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    at: Any = places.cpu().numpy().astype(np.uint64)[:, None]
    draws = at * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    bits = _mixed(start + draws * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def _mixed(state: Any) -> Any:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
