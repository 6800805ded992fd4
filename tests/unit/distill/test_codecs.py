"""Records of bytes: what comes back, how exactly, and how many bytes it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.distill.codecs import STEPS, CacheFormat, Codec, pack, unpack
from potstill.distill.sparse import Samples, TopK, sample, top_k, uniforms
from potstill.errors import TrainingError

WIDTH, WORDS = 576, 49_152


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(kind: Any, kept: Any, count: int = 0, width: int = WIDTH) -> Any:
    """What comes back of all tokens."""
    codec = Codec(CacheFormat(kind, count), width)
    tokens = len(kept) if isinstance(kept, Tensor) else len(kept.ids)
    return codec.decode(codec.encode(kept), tokens, torch.arange(tokens))


def drawn(logits: Tensor, count: int, seed: int = 0) -> Samples:
    return sample(logits, 1.0, uniforms(seed, torch.arange(len(logits)), count))


def test_planes_come_back_whatever_they_hold() -> None:
    noise = bytes(normal(4000).view(torch.uint8).numpy())
    planes = [b"", b"\0" * 5000, noise, b"a", b"ab" * 100]
    record = pack(planes)
    assert unpack(record) == planes
    assert len(record) < len(noise) + 400
    assert unpack(pack([])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bf16_loses_bf16s_rounding_alone(dtype: torch.dtype) -> None:
    states = normal(11, WIDTH).to(dtype)
    found = turned("hidden_bf16", states)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, states.to(torch.bfloat16))


@pytest.mark.parametrize("width", [576, 4096, 96, 100, 7])
def test_int8_fits_every_width(width: int) -> None:
    states = normal(5, width)
    found = turned("hidden_int8", states, width=width)
    assert found.shape == states.shape
    assert (found - states).norm() < 0.01 * states.norm()


def test_int8_keeps_small_features_beside_an_outlier() -> None:
    states = normal(50, WIDTH)
    states[:, 17] *= 40
    error = (turned("hidden_int8", states) - states).norm()
    plain = []
    for group in states.view(50, -1, 64).unbind(1):
        scale = group.abs().amax(-1, keepdim=True) / 127
        plain.append((group / scale).round() * scale - group)
    assert error < 0.5 * torch.stack(plain).norm()


def test_int8_of_zeros_is_zero_beside_large_numbers() -> None:
    states = torch.zeros(3, WIDTH)
    states[1] = 3e30
    states[2, :64] = normal(64)
    found = turned("hidden_int8", states)
    assert (found[0] == 0).all()
    assert (found[2, 64:] == 0).all()
    torch.testing.assert_close(found[1], states[1], rtol=1e-2, atol=0)


def test_top_k_is_within_a_thousandth_and_has_mass_one() -> None:
    kept = top_k(3 * normal(30, WORDS), 64, 1.0)
    found = turned("top_k", kept, 64)
    assert torch.equal(found.ids, kept.ids)
    assert ((found.log_p - kept.log_p).exp() - 1).abs().max() <= 1e-3
    assert ((found.tail - kept.tail).exp() - 1).abs().max() <= 1e-3
    mass = found.log_p.double().exp().sum(-1) + found.tail.double().exp()
    torch.testing.assert_close(mass, torch.ones(30).double(), rtol=0, atol=1e-6)
    assert (found.log_p <= 0).all()


def test_a_sure_word_and_a_missing_tail_come_back() -> None:
    sure = top_k(torch.tensor([[30.0, 0.0, 0.0, 0.0], [500.0, 400.0, 0.0, 0.0]]), 2, 1.0)
    found = turned("top_k", sure, 2)
    torch.testing.assert_close(found.tail[:1], sure.tail[:1], rtol=1e-4, atol=0)
    assert found.log_p[:, 0].abs().max() < 1e-6
    assert found.log_p[1, 1] == pytest.approx(-64, abs=0.01)  # as low as it goes
    whole = turned("top_k", top_k(normal(2, 5), 5, 1.0), 5)
    assert (whole.tail == -torch.inf).all()
    torch.testing.assert_close(whole.log_p.exp().sum(-1), torch.ones(2))


def test_samples_come_back_with_their_weights() -> None:
    kept = drawn(3 * normal(30, WORDS), 50)
    found = turned("sampled", kept, 50)
    used = kept.weights > 0
    assert torch.equal(found.weights, kept.weights)
    assert torch.equal(found.ids, kept.ids)
    assert (found.log_p - kept.log_p).abs().max() <= 0.5 / STEPS + 1e-6
    assert (found.log_p[~used] == 0).all()


def test_more_draws_than_a_byte_counts_and_ids_beyond_two_bytes() -> None:
    logits = torch.full((4, 150_000), -30.0)
    logits[:, 140_000], logits[:, 70_001] = 5.0, 3.0
    found = turned("sampled", drawn(logits, 1000), 1000)
    assert found.ids[:, :2].tolist() == [[70_001, 140_000]] * 4
    assert (found.weights[:, 1] > 0.256).all()
    top = turned("top_k", top_k(logits, 2, 1.0), 2)
    assert top.ids.tolist() == [[140_000, 70_001]] * 4


@pytest.mark.parametrize("kind", ["hidden_bf16", "hidden_int8", "top_k", "sampled"])
def test_chosen_tokens_are_those_of_the_whole(kind: Any) -> None:
    logits, count = 3 * normal(20, 200), 9
    kept = {"top_k": top_k(logits, count, 1.0), "sampled": drawn(logits, count)}.get(
        kind, normal(20, WIDTH)
    )
    codec = Codec(CacheFormat(kind, count), WIDTH)
    record = codec.encode(kept)
    whole = codec.decode(record, 20, torch.arange(20))
    for places in ([3], [19, 0, 7, 7], []):
        at = torch.tensor(places, dtype=torch.int64)
        found, expected = codec.decode(record, 20, at), whole[at]
        pairs = [(found, expected)]
        if not isinstance(found, Tensor):
            pairs = list(zip(vars(found).values(), vars(expected).values(), strict=True))
        assert all(torch.equal(one, two) for one, two in pairs)


def test_the_same_values_are_the_same_bytes() -> None:
    kept = drawn(3 * normal(30, 500), 12)
    codec = Codec(CacheFormat("sampled", 12), WIDTH)
    assert codec.encode(kept) == codec.encode(kept[torch.arange(30)])


def test_unpredicted_tokens_cost_nothing() -> None:
    kept = top_k(normal(4, 500), 12, 1.0)
    codec = Codec(CacheFormat("top_k", 12), WIDTH)
    apart, spread = codec.encode(kept), codec.encode(kept.spread(torch.arange(4), 400))
    assert len(spread) < len(apart) + 200
    samples = Codec(CacheFormat("sampled", 12), WIDTH)
    empty = drawn(normal(1, 500), 12).spread(torch.tensor([399]), 400)
    found = samples.decode(samples.encode(empty), 400, torch.tensor([5, 399]))
    assert isinstance(found, Samples)
    assert found.weights[0].sum() == 0
    assert len(set(found.ids[0].tolist())) == 12


def test_records_are_no_larger_than_the_estimate() -> None:
    states, logits = normal(200, WIDTH), 3 * normal(200, WORDS)
    for format, kept in (
        (CacheFormat("hidden_bf16"), states),
        (CacheFormat("hidden_int8"), states),
        (CacheFormat("top_k", 64), top_k(logits, 64, 1.0)),
        (CacheFormat("sampled", 50), drawn(logits, 50)),
    ):
        assert len(Codec(format, WIDTH).encode(kept)) / 200 < format.token_bytes(WIDTH, WORDS) + 1


def test_the_estimates_of_a_small_model() -> None:
    found = {
        format.kind: format.token_bytes(WIDTH, WORDS)
        for format in (
            CacheFormat("hidden_bf16"),
            CacheFormat("hidden_int8"),
            CacheFormat("top_k", 64),
            CacheFormat("sampled", 50),
        )
    }
    assert found == {"hidden_bf16": 1152, "hidden_int8": 594, "top_k": 260, "sampled": 251}


def test_what_makes_a_format_another() -> None:
    hidden = CacheFormat("hidden_int8", 3, 2.0, 4)
    assert hidden.settings == {"kind": "hidden_int8"}
    assert CacheFormat("top_k", 3, 2.0, 4).settings == CacheFormat("top_k", 3, 2.0, 5).settings
    assert CacheFormat("sampled", 3, 2.0, 4).settings != CacheFormat("sampled", 3, 2.0, 5).settings
    hidden.check(1)
    with pytest.raises(TrainingError, match="cannot keep 3 words of 2"):
        CacheFormat("top_k", 3).check(2)


def test_a_top_k_is_likeliest_first() -> None:
    found = turned("top_k", top_k(normal(5, 90), 8, 1.0), 8)
    assert isinstance(found, TopK)
    assert (found.log_p.diff(dim=1) <= 0).all()
