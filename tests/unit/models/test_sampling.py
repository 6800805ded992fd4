"""Seeded draws against the distribution they are from, and the nucleus."""

from __future__ import annotations

import torch

from potstill.models.sampling import Draw, nucleus


def test_draws_follow_the_softmax_of_float64() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    draw, count = Draw(11, 1.7, 1.0), 20_000
    drawn = torch.stack([draw.noisy(logits).argmax() for _ in range(count)])
    seen = drawn.bincount(minlength=12).double()
    expected = count * (logits.double() / 1.7).softmax(-1)
    chi_square = float(((seen - expected).square() / expected).sum())
    assert chi_square < 31.3  # 11 degrees of freedom: 1 in 1000 is above, and the seed is fixed


def test_nothing_is_drawn_outside_of_the_nucleus_or_at_temperature_0() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    draw = Draw(5, 1.0, 0.7)
    assert {int(draw.noisy(logits).argmax()) for _ in range(500)} == {1, 3}
    assert Draw(5, 0.0, 1.0).noisy(logits) is logits


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    assert nucleus(logits, 0.7).isfinite().tolist() == [False, True, False, True]
    assert nucleus(logits, 0.76).isfinite().tolist() == [False, True, True, True]
    assert nucleus(logits, 1.0).isfinite().all()
