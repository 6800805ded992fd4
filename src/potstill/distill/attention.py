"""Attention within the sequences of a packed batch, and nowhere across their borders.

In: queries, keys and values of a whole batch [1, heads, N, d], and the `Segment`s it consists of.
Out: what each segment would give alone. `use(model)` makes a transformers model call it. Knows
nothing of rows, losses or training.

Linear layers see one long sequence without padding; attention goes through the segments one by
one. On a CPU a segment's scores are multiplied out by query blocks, and its probabilities are
kept for the backward pass: forward and backward together were measured 2 to 4 times as fast as
PyTorch's flash attention up to a thousand tokens; beyond, and on a GPU, PyTorch's kernels do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "potstill_segments"
LONGEST_EXPLICIT = 1024
"""Tokens of a segment up to which multiplying out beats flash attention on a CPU."""
QUERY_BLOCK = 256
"""Queries whose scores are there at once: a long segment's later keys are skipped for earlier
queries, and its scores fit into the processor's cache."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A sequence within a packed batch."""

    start: int
    length: int
    positions: Tensor | None = None
    """[length] int64: position of each token in its row, where rows share a beginning."""
    visible: Tensor | None = None
    """[length, length] bool: which token sees which; None: each one sees all before it."""
    _made: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def bias(self, window: int | None, like: Tensor) -> Tensor:
        """[length, length] to add to the scores: 0 where a token sees another, else -inf."""

        def make() -> Tensor:
            sees = self.sight(window).to(like.device)
            return like.new_zeros(sees.shape).masked_fill_(~sees, -torch.inf)

        return self._once((window, like.dtype, like.device), make)

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """[length, length] bool: which token sees which; None if each sees all before it."""
        if self.visible is None and (window is None or window >= self.length):
            return None
        return self._once((window, device), lambda: self.sight(window).to(device))

    def _once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """The same for every layer and pass of a batch."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def sight(self, window: int | None) -> Tensor:
        """[length, length] bool: which token sees which, no farther than the window."""
        sees = self.visible
        if sees is None:
            sees = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        if window is not None and window < self.length:
            at = torch.arange(self.length) if self.positions is None else self.positions
            sees = sees & (at[:, None] - at[None, :] < window)
        return sees


@dataclass(frozen=True)
class Seen:
    """Queries and keys of one layer, for the transfer of attention maps; [heads, N, d]."""

    queries: Tensor
    keys: Tensor
    scale: float
    window: int | None = None


_recorder: ContextVar[dict[int, Seen | None] | None] = ContextVar("recorder", default=None)
"""The layers that are asked for, and what was seen of them."""


@contextmanager
def recorded(layers: Sequence[int]) -> Iterator[Mapping[int, Seen]]:
    """Within it, packed forward passes leave the queries and keys of these layers (from 0)."""
    found: dict[int, Any] = dict.fromkeys(layers)
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


def use(model: Any) -> None:
    """Let `model` attend within segments where it is given some; else as it did with sdpa."""
    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation != NAME:
        model.attention_before = model.config._attn_implementation
        model.set_attn_implementation(NAME)


def unuse(model: Any) -> None:
    """Back to the attention that the model came with."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(model.attention_before)


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, N, d], key and value [1, Hk, N, d].

    dropout is 0 but in training, as transformers passes it. Returns [1, N, H, d]. Without segments
    it is transformers' own sdpa attention.
    """
    if segments is None:
        if softcap is not None:
            return _capped(query, key, value, attention_mask, dropout, scaling, softcap), None
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return result
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embedding leaves fp32 under autocast; PyTorch's own attention would cast it too.
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (one[0].to(dtype) for one in (query, key, value))
    found = _recorder.get()
    if found is not None and module.layer_idx in found:
        found[module.layer_idx] = Seen(q, k, scale, sliding_window)
    longest = max(segment.length for segment in segments)
    plain = not dropout and softcap is None
    if plain and q.device.type == "cpu" and longest <= LONGEST_EXPLICIT:
        out = _Multiplied.apply(q, k, v, segments, scale, sliding_window)  # type: ignore[no-untyped-call]
    else:
        parts = [_one(q, k, v, one, scale, sliding_window, softcap, dropout) for one in segments]
        out = torch.cat(parts, dim=1)
    return out.transpose(0, 1).unsqueeze(0), None


def _capped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Plain attention of [B, heads, N, d] with capped scores, which no kernel of PyTorch has."""
    k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(q.float() @ k.float().mT * (scale / softcap))
    if mask is None:  # transformers leaves out a mask that is only causal
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    seen = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(seen.softmax(-1), dropout)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def _one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment: Segment,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """One segment by PyTorch's kernels, or by plain operations where scores are capped."""
    own = slice(segment.start, segment.start + segment.length)
    repeats = q.shape[0] // k.shape[0]
    q, k, v = q[:, own], *(one[:, own].repeat_interleave(repeats, 0) for one in (k, v))
    mask = segment.mask(window, q.device)
    whole = (q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0))
    if softcap is not None:
        return _capped(*whole, mask, dropout, scale, softcap)[0].transpose(0, 1)
    return F.scaled_dot_product_attention(
        *whole, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale
    )[0]


def _blocks(
    segments: Sequence[Segment], window: int | None, like: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Queries, the keys that any of them may see, and their bias; no query sees a later key."""
    for segment in segments:
        bias = segment.bias(window, like)
        for first in range(0, segment.length, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, segment.length)
            start = segment.start
            yield (
                slice(start + first, start + last),
                slice(start, start + last),
                bias[first:last, :last],
            )


class _Multiplied(torch.autograd.Function):
    """Attention by matrix products; grouped queries share their keys without copies."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Sequence[Segment],
        scale: float,
        window: int | None,
    ) -> Tensor:
        heads, groups = q.shape[0], k.shape[0]
        wanted, kept = any(ctx.needs_input_grad[:3]), []
        # Head after head in memory: products of strided matrices copy them again and again.
        q, k, v = (q * scale).contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        for rows, columns, bias in _blocks(segments, window, q):
            queries, keys = _grouped(q[:, rows], groups), k[:, columns]
            scores = torch.bmm(queries, keys.transpose(1, 2)).view(heads, *bias.shape)
            weights = torch.softmax(scores.add_(bias), -1)  # in fp32 inside, whatever the type
            out[:, rows] = torch.bmm(_grouped(weights, groups), v[:, columns]).view(
                heads, bias.shape[0], -1
            )
            if wanted:
                kept.append(weights)
        if wanted:
            ctx.save_for_backward(q, k, v, *kept)
            ctx.how = (segments, scale, window)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        segments, scale, window = ctx.how
        heads, groups, grad = q.shape[0], k.shape[0], grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, columns, bias), weights in zip(_blocks(segments, window, q), kept, strict=True):
            queries, upward = _grouped(q[:, rows], groups), _grouped(grad[:, rows], groups)
            grad_v[:, columns] += torch.bmm(_grouped(weights, groups).transpose(1, 2), upward)
            grad_weights = torch.bmm(upward, v[:, columns].transpose(1, 2))
            grad_scores = _grouped(
                torch.ops.aten._softmax_backward_data(
                    grad_weights.view(heads, *bias.shape), weights, -1, q.dtype
                ),
                groups,
            )
            own = torch.bmm(grad_scores, k[:, columns])
            grad_q[:, rows] = own.view(heads, bias.shape[0], -1)
            grad_k[:, columns] += torch.bmm(grad_scores.transpose(1, 2), queries)
        return grad_q.mul_(scale), grad_k, grad_v, None, None, None


def _grouped(one: Tensor, groups: int) -> Tensor:
    """[heads, L, d] -> [groups, heads / groups * L, d]."""
    return one.reshape(groups, -1, one.shape[-1])
