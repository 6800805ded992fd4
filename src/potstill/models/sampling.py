"""Draws from a model's distribution that depend on their own seed alone.

In: one row's logits at a time, a seed, a temperature, a nucleus. Out: logits with noise, whose
largest is the draw. Knows nothing of models, batches or text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Draw:
    """The draws of one sequence, token after token, by the Gumbel-max trick.

    argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T) (Gumbel, 1954; Maddison
    et al., 2014, "A* Sampling"). The noise comes from a generator of the sequence's own, so a draw
    does not depend on what else is in the batch. Tokens outside the top-p nucleus, and all but the
    top_k likeliest, are -inf.
    """

    def __init__(
        self, seed: int, temperature: float, top_p: float, top_k: int | None = None
    ) -> None:
        """temperature 0: nothing is drawn, the likeliest token is taken."""
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._random = torch.Generator().manual_seed(seed)

    def noisy(self, logits: Tensor) -> Tensor:
        """[vocabulary] fp32 -> [vocabulary]; its argmax is the sequence's next draw."""
        if self.temperature == 0:
            return logits
        uniform = torch.rand(logits.shape, generator=self._random).clamp_min_(1e-20)
        noise = uniform.log_().neg_().log_().neg_().to(logits.device)
        kept = logits if self.top_k is None else likeliest(logits, self.top_k)
        return nucleus(kept / self.temperature, self.top_p) + noise


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's own settings."""
    ends = model.generation_config.eos_token_id
    named = ends if isinstance(ends, list) else [ends]
    return frozenset(one for one in (*named, tokenizer.eos_token_id) if one is not None)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of tokens whose probability reaches top_p. logits: (vocab,)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.index_fill(-1, order[before >= top_p], float("-inf"))


def likeliest(logits: Tensor, top_k: int) -> Tensor:
    """-inf outside the top_k likeliest tokens; of equal ones the first. logits: (vocab,)."""
    if top_k >= len(logits):
        return logits
    order = logits.sort(descending=True, stable=True).indices
    return logits.index_fill(-1, order[top_k:], float("-inf"))
