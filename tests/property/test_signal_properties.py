"""What holds for every hidden state and every distribution that a cache keeps."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from potstill.distill.codecs import CacheFormat, Codec, pack, unpack
from potstill.distill.sparse import TopK, sample, top_k, uniforms

WORDS, WIDTH = 24, 128
STATES = arrays("float32", (3, WIDTH), elements=st.floats(-(2.0**20), 2.0**20, width=32))
LOGITS = arrays("float32", (4, WORDS), elements=st.floats(-30, 30, width=32))
COUNT = st.integers(1, WORDS)
TEMPERATURE = st.sampled_from([0.5, 1.0, 3.0])


def turned(kind: Any, kept: Any, count: int = 0) -> Any:
    codec = Codec(CacheFormat(kind, count), WIDTH)
    tokens = len(kept) if isinstance(kept, Tensor) else len(kept.ids)
    return codec.decode(codec.encode(kept), tokens, torch.arange(tokens))


def outcomes(log_q: Tensor, ids: Tensor) -> Tensor:
    """Log q of each of the words, and of all others together."""
    rest = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_q.gather(-1, ids), rest], -1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)


def coarse(found: TopK) -> Tensor:
    return torch.cat([found.log_p, found.tail.unsqueeze(-1)], -1).double()


@given(st.lists(st.binary(max_size=300), max_size=12))
def test_planes_come_back(planes: list[bytes]) -> None:
    assert unpack(pack(planes)) == planes


@given(STATES)
def test_bf16_comes_back_to_the_bit(values: Any) -> None:
    states = torch.from_numpy(values)
    assert torch.equal(turned("hidden_bf16", states), states.to(torch.bfloat16))


@given(STATES)
def test_int8_is_off_by_half_a_step_of_each_group_at_most(values: Any) -> None:
    states = torch.from_numpy(values)
    error = (turned("hidden_int8", states) - states).view(3, -1, 64).norm(dim=-1)
    groups = states.view(3, -1, 64).norm(dim=-1)
    # Rotated, no feature is larger than the group's norm, and the rotation keeps the error's norm.
    # 1 + 2^-8 is the rounding of the scale to bf16, 1e-5 that of fp32.
    step = groups / 127 * (1 + 2**-8)
    assert (error <= math.sqrt(64) * step / 2 + 1e-5 * groups + 1e-30).all()


@settings(max_examples=200)
@given(LOGITS, COUNT, TEMPERATURE)
def test_top_k_and_tail_are_a_distribution_before_and_after(
    values: Any, count: int, temperature: float
) -> None:
    kept = top_k(torch.from_numpy(values), count, temperature)
    found = turned("top_k", kept, count)
    for one in (kept, found):
        mass = coarse(one).exp()
        assert (mass >= 0).all()
        torch.testing.assert_close(mass.sum(-1), torch.ones(4).double(), rtol=0, atol=2e-6)
    assert torch.equal(found.ids, kept.ids)
    likely = kept.log_p > -60
    assert ((found.log_p - kept.log_p).exp() - 1)[likely].abs().max() <= 1e-3
    assert torch.equal(found.tail == -torch.inf, kept.tail == -torch.inf)


@settings(max_examples=200)
@given(LOGITS, LOGITS, COUNT, TEMPERATURE)
def test_the_coarse_kl_is_never_negative_and_never_above_the_full_one(
    teacher: Any, student: Any, count: int, temperature: float
) -> None:
    """The data processing inequality, against fp64; what is rounded is off by its rounding."""
    log_p = torch.log_softmax(torch.from_numpy(teacher).double() / temperature, -1)
    log_q = torch.log_softmax(torch.from_numpy(student).double() / temperature, -1)
    kept = top_k(torch.from_numpy(teacher), count, temperature)
    full, near = kl(log_p, log_q), kl(coarse(kept), outcomes(log_q, kept.ids))
    assert (near >= -1e-5).all()
    assert (near <= full + 1e-5 * (1 + full)).all()
    found = turned("top_k", kept, count)
    rounded = kl(coarse(found), outcomes(log_q, found.ids))
    assert (rounded >= -1e-5).all()
    # |d KL| <= relative error of p times the mean of |log p - log q| + 1, at most 120 here.
    assert (rounded - near).abs().max() <= 1e-3 * 122


@settings(max_examples=200)
@given(LOGITS, COUNT, TEMPERATURE, st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_samples_are_shares_of_distinct_words(
    values: Any, count: int, temperature: float, seed: int, place: int
) -> None:
    logits = torch.from_numpy(values)
    kept = sample(logits, temperature, uniforms(seed, place + torch.arange(4), count))
    found = turned("sampled", kept, count)
    p = torch.softmax(logits.double() / temperature, -1)
    for one in (kept, found):
        assert all(len(set(row)) == count for row in one.ids.tolist())
        shares = one.weights * count
        torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-3)
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(4))
        # One draw in each stratum: a word lies in all but two of the strata that it touches.
        exact = p.gather(-1, one.ids) * count
        assert ((shares - exact).abs() < 2 + 1e-4).all()
    assert torch.equal(found.ids, kept.ids)
    assert torch.equal(found.weights, kept.weights)
    assert (found.log_p - kept.log_p)[kept.log_p > -60].abs().max() <= 1e-3
