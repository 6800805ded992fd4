"""Top k and samples against their definitions in fp64, with seeds that are fixed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from potstill.distill.sparse import (
    Samples,
    TopK,
    distinct,
    exact_logits,
    joined,
    sample,
    top_k,
    uniforms,
)
from potstill.models.output import OutputLayer


def peaked(tokens: int, words: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Logits of a few likely words and many unlikely ones."""
    return scale * torch.randn(tokens, words, generator=torch.Generator().manual_seed(seed))


def draws(tokens: int, count: int, seed: int = 0) -> Tensor:
    return uniforms(seed, torch.arange(tokens), count)


def dense(samples: Samples, words: int) -> Tensor:
    estimate = torch.zeros(len(samples.ids), words, dtype=torch.float64)
    return estimate.scatter_(1, samples.ids, samples.weights.double())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_top_k_is_that_of_the_full_distribution(temperature: float) -> None:
    logits = peaked(9, 300)
    found = top_k(logits.clone(), 7, temperature)
    log_p = torch.log_softmax(logits.double() / temperature, -1)
    assert torch.equal(found.ids, log_p.topk(7).indices)
    torch.testing.assert_close(found.log_p.double(), log_p.topk(7).values, rtol=1e-6, atol=1e-6)
    rest = log_p.scatter(-1, found.ids, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.tail.double(), rest, rtol=1e-6, atol=1e-6)


def test_a_tiny_tail_keeps_its_digits() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0, -1.0]])
    expected = math.log((2 + math.exp(-1)) / (math.exp(40) + 2 + math.exp(-1)))
    assert top_k(logits, 1, 1.0).tail.item() == pytest.approx(expected, rel=1e-6)


def test_all_words_leave_no_tail() -> None:
    found = top_k(peaked(3, 5), 5, 1.0)
    assert (found.tail == -torch.inf).all()
    torch.testing.assert_close(found.log_p.exp().sum(-1), torch.ones(3))


def test_logits_are_left_as_they_were() -> None:
    logits = peaked(3, 50)
    before = logits.clone()
    top_k(logits, 5, 1.0)
    sample(logits, 1.0, draws(3, 5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_are_unbiased(temperature: float) -> None:
    words, count, tokens = 60, 8, 20_000
    logits = peaked(1, words).expand(tokens, -1)
    p = torch.softmax(logits[0].double() / temperature, -1)
    found = sample(logits, temperature, draws(tokens, count, seed=1))
    error = (dense(found, words).mean(0) - p).abs()
    # A word's count is a sum of `count` draws, whose variance is at most count * p.
    deviation = (p / count / tokens).sqrt()
    assert (error <= 5 * deviation).all()
    assert error.sum() <= deviation.sum()


def test_seeds_are_unbiased_too() -> None:
    logits, words = peaked(1, 30), 30
    p = torch.softmax(logits[0].double(), -1)
    estimates = [dense(sample(logits, 1.0, draws(1, 4, seed)), words) for seed in range(3000)]
    error = (torch.cat(estimates).mean(0) - p).abs()
    assert (error <= 5 * (p / 4 / 3000).sqrt()).all()


def test_strata_vary_less_than_independent_draws() -> None:
    words, count, tokens = 200, 25, 4000
    logits = peaked(1, words).expand(tokens, -1)
    p = torch.softmax(logits[0].double(), -1)
    directions = torch.randn(words, 20, generator=torch.Generator().manual_seed(2)).double()
    found = (dense(sample(logits, 1.0, draws(tokens, count)), words) @ directions).var(0)
    independent = (p @ directions.square() - (p @ directions).square()) / count
    # The bound holds for each direction, up to the error of a variance of 4000 values.
    assert (found / independent < 1 + 5 * math.sqrt(2 / tokens)).all()
    assert (found / independent).mean() < 0.5


def test_merged_words_are_distinct_and_carry_their_own_probability() -> None:
    logits = peaked(40, 70)
    found = sample(logits, 1.5, draws(40, 30))
    assert all(len(set(row)) == 30 for row in found.ids.tolist())
    used = found.weights > 0
    assert used.sum(1).min() < 20
    log_p = torch.log_softmax(logits / 1.5, -1).gather(-1, found.ids)
    torch.testing.assert_close(found.log_p[used], log_p[used])
    assert (found.log_p[~used] == 0).all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(40))
    steps = found.weights * 30
    torch.testing.assert_close(steps, steps.round())


def test_a_word_without_mass_is_never_drawn() -> None:
    logits = torch.tensor([[-1e9, 0.0, -1e9, 0.0, -1e9]])
    edges = torch.tensor([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53], [0.0, 1 - 2**-53]]).double()
    found = sample(logits.expand(3, -1), 1.0, edges)
    assert set(found.ids[found.weights > 0].tolist()) == {1, 3}


def test_a_sure_word_has_all_the_weight() -> None:
    found = sample(torch.tensor([[0.0, 200.0, 0.0, 0.0]]), 1.0, draws(1, 3))
    assert found.ids[0, 0] == 1
    assert found.weights.tolist() == [[1.0, 0.0, 0.0]]
    assert sorted(found.ids[0].tolist()) == [0, 1, 2]


def test_uniforms_depend_on_seed_and_place_alone() -> None:
    places = torch.tensor([5, 2, 5, 9])
    found = uniforms(3, places, 6)
    assert torch.equal(found, torch.stack([uniforms(3, one[None], 6)[0] for one in places]))
    assert not torch.equal(found, uniforms(4, places, 6))
    assert torch.equal(uniforms(-1, places, 6), uniforms(2**64 - 1, places, 6))


def test_uniforms_are_uniform_and_independent() -> None:
    found = uniforms(0, torch.arange(5000), 8)
    assert found.min() >= 0
    assert found.max() < 1
    counts = torch.histc(found.float(), bins=50, min=0, max=1)
    assert ((counts - 800).square() / 800).sum() < 85  # chi square, 49 degrees: 99.9 %
    correlation = torch.corrcoef(found.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(5000)
    shifted = torch.corrcoef(torch.stack([found[:-1, 0], found[1:, 0]]))
    assert shifted[0, 1].abs() < 5 / math.sqrt(5000)


def test_unused_places_get_words_that_are_not_there() -> None:
    ids = torch.tensor([[0, 2, 9, 9], [7, 8, 9, 10], [3, 9, 9, 9]])
    used = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    found = distinct(ids, used)
    assert found.tolist() == [[0, 2, 1, 3], [7, 8, 9, 10], [3, 0, 1, 2]]


@pytest.mark.parametrize("words_at_once", [7, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_exact_whatever_the_layers_dtype(
    monkeypatch: pytest.MonkeyPatch, words_at_once: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("potstill.distill.sparse.WORDS_AT_ONCE", words_at_once)
    torch.manual_seed(0)
    output = OutputLayer(torch.randn(40, 16).to(dtype), torch.randn(40).to(dtype), 0.25, 3.0)
    states = torch.randn(5, 16).to(dtype)
    expected = output.cut(37, torch.float64).logits(states.double())
    found = exact_logits(output, states, 37)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_tokens_are_chosen_spread_and_joined() -> None:
    whole = top_k(peaked(6, 20), 3, 1.0)
    for index in (slice(2, 4), torch.tensor([4, 0]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(whole[index].ids, whole.ids[index])
        assert torch.equal(whole[index].tail, whole.tail[index])
    again = joined([whole[:2], whole[2:]])
    assert isinstance(again, TopK)
    assert torch.equal(again.log_p, whole.log_p)
    spread = whole[:2].spread(torch.tensor([3, 1]), 5)
    assert spread.ids.tolist()[1::2] == whole.ids[[1, 0]].tolist()
    assert spread.log_p[[0, 2, 4]].abs().sum() == 0
    assert torch.equal(joined([whole.tail[:1], whole.tail[1:]]), whole.tail)
