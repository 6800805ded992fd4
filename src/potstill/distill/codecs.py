"""How the teacher's signals of a sequence of tokens become bytes, and back.

In: hidden states, `TopK` or `Samples`. Out: one record of bytes, compressed without loss; and the
other way round for whichever tokens are asked for. Knows nothing of files, rows or models.

    kind          bytes of a token, at most                  what is lost
    hidden_bf16   2 a feature                                bf16's rounding
    hidden_int8   1 a feature and 2 a group of 64            1/254 of a group's peak, once rotated
    top_k         4 a word (5 beyond 65,536 words), and 4    words below the k likeliest
    sampled       5 a word that was drawn (6), and 1         nothing on average

Groups of features are rotated by a Hadamard matrix before they are rounded to int8: the last
hidden state has outlier features, whose group would be rounded by their size, and a rotation
spreads them over the group (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456). On SmolLM2-135M
the KL to the exact distribution is 0.0002 nats; it is 0.0011 with plain groups, and 0.0044 with
one scale a token.

Numbers of several bytes are split into planes, all first bytes, then all second ones: high bytes
of floats and ids repeat, low ones do not. A plane that does not shrink is kept as it is.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.distill.sparse import Kept, Samples, TopK, distinct
from potstill.errors import TrainingError

Kind = Literal["hidden_bf16", "hidden_int8", "top_k", "sampled"]

GROUP = 64
"""Features that share a scale."""
STEPS = 1024
"""Parts of a nat in which logarithms are stored: at most 1/2048 off, down to exp(-64)."""
LARGEST_STEP = (1 << 16) - 1
MOST_DRAWS = LARGEST_STEP
"""So that a word's count is two bytes; while it is below 256, the second costs nothing."""


@dataclass(frozen=True)
class CacheFormat:
    """What is kept of each token, and how."""

    kind: Kind
    count: int = 0
    """top_k: how many words; sampled: how many draws."""
    temperature: float = 1.0
    """Of the distribution that top_k and sampled keep; hidden states serve every temperature."""
    seed: int = 0
    """sampled: of the draws."""

    @property
    def hidden(self) -> bool:
        """Whether hidden states are kept, which need the teacher's output layer."""
        return self.kind.startswith("hidden")

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the content another."""
        if self.hidden:
            return {"kind": self.kind}
        own = {"kind": self.kind, "count": self.count, "temperature": self.temperature}
        return own | ({"seed": self.seed} if self.kind == "sampled" else {})

    def check(self, vocabulary: int) -> None:
        """Errors: TrainingError if that many words cannot be kept."""
        if self.hidden:
            return
        most = vocabulary if self.kind == "top_k" else min(vocabulary, MOST_DRAWS)
        if not 1 <= self.count <= most or not self.temperature > 0:
            raise TrainingError(
                f"A cache of kind {self.kind} cannot keep {self.count} words of {vocabulary} at "
                f"temperature {self.temperature}.",
                f"Choose between 1 and {most} words, and a temperature above 0.",
            )

    def token_bytes(self, width: int, vocabulary: int) -> int:
        """Bytes of one token before compression; of samples the most they can be."""
        word = 2 + (2 if vocabulary <= 1 << 16 else 3)
        return {
            "hidden_bf16": 2 * width,
            "hidden_int8": width + 2 * (width // _group(width)),
            "top_k": word * self.count + 4,
            "sampled": (word + 1) * self.count + 1,
        }[self.kind]


@dataclass(frozen=True)
class Codec:
    """Records of one format; width: features of a hidden state."""

    format: CacheFormat
    width: int

    def encode(self, kept: Kept) -> bytes:
        """The record of a sequence of tokens."""
        if isinstance(kept, TopK):
            return pack(_top_k_planes(kept))
        if isinstance(kept, Samples):
            return pack(_sample_planes(kept))
        if self.format.kind == "hidden_int8":
            return pack(_int8_planes(kept))
        bits = kept.to(torch.bfloat16).contiguous().view(torch.int16)
        return pack(_planes(bits.numpy(), "<i2"))

    def decode(self, record: bytes, tokens: int, places: Tensor) -> Kept:
        """Those of the record's `tokens` tokens that are at `places`, in that order."""
        planes, rows = unpack(record), _Rows(tokens, places.numpy())
        if self.format.kind == "top_k":
            return _top_k(planes, rows)
        if self.format.kind == "sampled":
            return _samples(planes, rows, self.format.count)
        if self.format.kind == "hidden_int8":
            return _int8(planes, rows, _group(self.width))
        return torch.from_numpy(rows.of(planes, "<i2")).view(torch.bfloat16)


@dataclass(frozen=True)
class _Rows:
    """Which rows of [tokens, ...] are wanted."""

    tokens: int
    places: Any

    def of(self, planes: Sequence[bytes], dtype: str) -> Any:
        """[len(places), ...] of the array that was split into these planes."""
        split = [np.frombuffer(plane, np.uint8).reshape(self.tokens, -1) for plane in planes]
        return _whole([plane[self.places] for plane in split], dtype)


def _planes(values: Any, dtype: str) -> list[bytes]:
    """The bytes of an array, those of equal rank together."""
    split = np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8)
    size = np.dtype(dtype).itemsize
    return [plane.tobytes() for plane in split.reshape(-1, size).T]


def _whole(planes: Sequence[Any], dtype: str) -> Any:
    """The array of these planes of bytes, with their shape."""
    return np.stack(planes, axis=-1).view(dtype)[..., 0]


def _int8_planes(states: Tensor) -> list[bytes]:
    """Rotated groups, each rounded to multiples of its own scale, which is stored in bf16."""
    group = _group(states.shape[1])
    rotated = states.float().reshape(len(states), -1, group) @ _hadamard(group)
    # Rounded first and divided by then: the rounding of the scale costs nothing.
    scales = (rotated.abs().amax(-1, keepdim=True) / 127).to(torch.bfloat16)
    steps = torch.where(scales == 0, 0.0, rotated / scales.float()).round_().clamp_(-127, 127)
    bits = scales.view(torch.int16).numpy()
    return [steps.to(torch.int8).numpy().tobytes(), *_planes(bits, "<i2")]


def _int8(planes: Sequence[bytes], rows: _Rows, group: int) -> Tensor:
    steps = torch.from_numpy(rows.of(planes[:1], "i1"))
    scales = torch.from_numpy(rows.of(planes[1:], "<i2")).view(torch.bfloat16)
    rotated = steps.view(*scales.shape, group).float() * scales.float().unsqueeze(-1)
    return (rotated @ _hadamard(group)).flatten(1)


def _top_k_planes(kept: TopK) -> list[bytes]:
    """Ids, how far each word is below the one before it, and the tail against the likeliest."""
    steps = _steps(kept.log_p[:, :1] - kept.log_p)
    below = np.diff(steps, axis=1, prepend=0)
    tail = (kept.tail - kept.log_p[:, 0]).numpy()
    return [*_planes(kept.ids.numpy(), "<u4"), *_planes(below, "<u2"), *_planes(tail, "<f4")]


def _top_k(planes: Sequence[bytes], rows: _Rows) -> TopK:
    """The words, normalised anew: whatever was rounded, the mass is 1 and no tail is negative."""
    ids = torch.from_numpy(rows.of(planes[:4], "<u4").astype(np.int64))
    below = rows.of(planes[4:6], "<u2").astype(np.int64).cumsum(axis=1)
    log_p = torch.from_numpy(-below / STEPS)
    tail = torch.from_numpy(rows.of(planes[6:], "<f4").astype(np.float64))
    total = torch.cat([log_p, tail], dim=1).logsumexp(-1, keepdim=True)
    return TopK(ids, (log_p - total).float(), (tail - total)[:, 0].float())


def _sample_planes(kept: Samples) -> list[bytes]:
    """How many words each token has; ids, counts and logarithms of those words alone."""
    used = kept.weights > 0
    counts = (kept.weights * kept.weights.shape[1]).round()[used]
    return [
        *_planes(used.sum(1).numpy(), "<u2"),
        *_planes(counts.numpy(), "<u2"),
        *_planes(kept.ids[used].numpy(), "<u4"),
        *_planes(_steps(-kept.log_p[used]), "<u2"),
    ]


def _samples(planes: Sequence[bytes], rows: _Rows, count: int) -> Samples:
    split = [np.frombuffer(plane, np.uint8) for plane in planes]
    words = _whole(split[:2], "<u2").astype(np.int64)
    used = torch.from_numpy(np.arange(count) < words[rows.places][:, None])
    # The n-th word of a token is n after its first one.
    firsts = (words.cumsum() - words)[rows.places]
    where = (firsts[:, None] + np.arange(count))[used.numpy()]
    split = [plane[where] for plane in split[2:]]
    counts, ids, steps = _whole(split[:2], "<u2"), _whole(split[2:6], "<u4"), split[6:]
    log_p = _whole(steps, "<u2").astype(np.float32) / np.float32(-STEPS)
    return Samples(
        distinct(_spread(ids.astype(np.int64), used), used),
        _spread(counts.astype(np.float32) / np.float32(count), used),
        _spread(log_p, used),
    )


def _spread(values: Any, used: Tensor) -> Tensor:
    found = torch.zeros(used.shape, dtype=torch.from_numpy(values).dtype)
    found[used] = torch.from_numpy(values)
    return found


def _steps(nats: Tensor) -> Any:
    return (nats * STEPS).round().clamp(0, LARGEST_STEP).long().numpy()


def _group(width: int) -> int:
    """The largest power of two up to `GROUP` that divides the width."""
    return math.gcd(width, GROUP)


@cache
def _hadamard(size: int) -> Tensor:
    """[size, size]: orthogonal, symmetric, and so its own inverse; size is a power of two."""
    one = torch.ones(1, 1)
    while len(one) < size:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    return one / math.sqrt(size)


def pack(planes: Sequence[bytes]) -> bytes:
    """One record: number of planes, length of each and whether it is compressed, the planes."""
    stored, header = [], [struct.pack("<B", len(planes))]
    for plane in planes:
        # Runs and frequencies only: these bytes have no repeated strings, and it is twice as fast.
        shrinking = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
        small = shrinking.compress(plane) + shrinking.flush()
        shrunk = len(small) < 0.98 * len(plane)
        stored.append(small if shrunk else plane)
        header.append(struct.pack("<?I", shrunk, len(stored[-1])))
    return b"".join(header + stored)


def unpack(record: bytes) -> list[bytes]:
    """The planes of a record."""
    count = record[0]
    planes, at = [], 1 + 5 * count
    for number in range(count):
        shrunk, length = struct.unpack_from("<?I", record, 1 + 5 * number)
        plane = record[at : at + length]
        planes.append(zlib.decompress(plane) if shrunk else plane)
        at += length
    return planes
