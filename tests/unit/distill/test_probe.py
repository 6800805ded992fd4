"""Mistakes in the machinery itself are planted, and the probe must name each before training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from potstill.distill import losses, probe, teaching, terms
from potstill.distill.attention import use
from potstill.distill.batches import Row, RowSet
from potstill.distill.families import group
from potstill.distill.layers import LayerStates
from potstill.distill.objective import AttentionConfig, Objective
from potstill.distill.signals import HiddenStates, LiveTeacher, TopK
from potstill.distill.terms import TermLoss
from potstill.errors import TrainingError
from potstill.models.surgery import drop_layers

OBJECTIVE = Objective(
    kd_weight=0.7,
    divergence={"forward_kl": 0.5, "reverse_kl": 0.5},
    temperature=2.0,
    ce_weight=0.3,
    hidden={"mse_weight": 0.1},
    attention={"weight": 0.2},
)
Probe = Callable[..., None]


@pytest.fixture
def check(teacher: Any, rows: list[Row]) -> Probe:
    """check(**changes of the objective) probes sound machinery, unless a test has broken it."""

    def run(signal: Any = None, **changes: Any) -> None:
        student = drop_layers(copy.deepcopy(teacher), [1]).requires_grad_(True)
        use(student)
        use(teacher)
        live = LiveTeacher(teacher, torch.float32)
        data = RowSet(rows, group([row.ids for row in rows], computed=500, in_full=2000), True)
        objective = OBJECTIVE.model_copy(update=changes)
        words = live.output.words
        loss = TermLoss(student, signal or live, objective, vocabulary=words, dtype=torch.float32)
        probe.check_loss(loss, live, data, 0)

    return run


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    """plant(place, name, mistake)."""
    return monkeypatch.setattr


def test_sound_machinery_passes_for_every_objective(check: Probe) -> None:
    check()
    none = Objective(hidden={}, attention={})
    for name in ("forward_kl", "reverse_kl", "jsd", "adaptive_kl", "total_variation"):
        check(divergence=name, hidden=none.hidden, attention=none.attention)
    check(kd_weight=0.0, kd_tokens="answer", ce_tokens="all", attention=none.attention)
    early = Objective(hidden={"mse_weight": 0.1, "layers": {1: 2}}, attention={"weight": 0.1})
    check(hidden=early.hidden, attention=AttentionConfig(weight=0.1, layers={1: 2}))
    late = Objective(kd_weight={"start": 0.0, "end": 1.0, "begin": 0.6}, ce_weight=0.0)
    check(**{name: getattr(late, name) for name in Objective.model_fields})


def test_a_loss_that_is_divided_twice(check: Probe, plant: Any) -> None:
    real = terms.linear_scores

    def halved(*args: Any, **settings: Any) -> Any:
        said = args[3]
        weights = said.kd_weights / max(1, len(said.kd_weights))
        return real(*args[:3], terms.Terms(said.targets, weights, said.ce_weights), **settings)

    plant(terms, "linear_scores", halved)
    with pytest.raises(TrainingError, match=r"term kd is .* computed plainly it is"):
        check()


def test_a_loss_that_is_divided_by_each_batchs_own_tokens(check: Probe, plant: Any) -> None:
    real = TermLoss.__call__

    def own(self: Any, rows: Any, batch: Any, weights: Any, totals: Any, **more: Any) -> Any:
        totals = {name: float(getattr(batch, f"{name}_counts").sum()) for name in totals}
        return real(self, rows, batch, weights, totals, **more)

    plant(TermLoss, "__call__", own)
    with pytest.raises(TrainingError, match="depends on how a step is split"):
        check()


def test_t_squared_on_the_value_alone(check: Probe, plant: Any) -> None:
    real = teaching.dense_block

    def unscaled(*args: Any, **more: Any) -> Any:
        value, grad, seen = real(*args, **more)
        return value, None if grad is None else grad / 4.0, seen

    plant("potstill.distill.fused.dense_block", unscaled)
    with pytest.raises(TrainingError, match="gradient of the term kd is 75% off"):
        check()


class Rounded(LiveTeacher):
    """A teacher whose states are as coarse as a file of few bits, and stand `shift` tokens off."""

    def __init__(self, teacher: Any, shift: int = 0) -> None:
        super().__init__(teacher, torch.float32)
        self.shift = shift

    def tokens(self, rows: Any, batch: Any) -> HiddenStates:
        said = super().tokens(rows, batch)
        coarse = (said.states * 16).round() / 16
        return HiddenStates(coarse.roll(self.shift, dims=0).bfloat16(), said.output)


def test_rounding_is_taken_for_no_mistake(check: Probe, teacher: Any) -> None:
    check(Rounded(teacher), ce_weight=0.0)
    check(Rounded(teacher), kd_tokens="answer")


def test_a_small_mistake_does_not_hide_behind_rounding(
    check: Probe, teacher: Any, plant: Any
) -> None:
    real = teaching.dense_block

    def off(*args: Any, **more: Any) -> Any:
        value, grad, seen = real(*args, **more)
        return value, None if grad is None else grad * 1.02, seen

    plant("potstill.distill.fused.dense_block", off)
    with pytest.raises(TrainingError, match="gradient of the term kd is 2% off"):
        check(Rounded(teacher))


def test_words_of_other_tokens(check: Probe, teacher: Any) -> None:
    with pytest.raises(TrainingError, match=r"hears of the teacher is .* nats a token away"):
        check(Rounded(teacher, shift=1))


def test_a_mixture_that_fell_back_to_one_part(check: Probe, plant: Any) -> None:
    plant(losses, "mixture", lambda shares, parameters: losses.by_name(next(iter(shares))))
    with pytest.raises(TrainingError, match="term kd is"):
        check()


def test_a_term_that_is_logged_and_moves_nothing(check: Probe, plant: Any) -> None:
    real = terms.hidden_sums

    def detached(*args: Any, **asked: Any) -> Any:
        mse, cosine = real(*args, **asked)
        return mse.detach(), cosine.detach()

    plant(terms, "hidden_sums", detached)
    with pytest.raises(TrainingError, match="hidden_mse has a weight, but it does not move"):
        check()


def test_all_terms_together_that_lose_one(check: Probe, plant: Any) -> None:
    real = TermLoss.__call__

    def forgetful(self: Any, rows: Any, batch: Any, weights: Any, *args: Any, **more: Any) -> Any:
        if weights.kd and weights.ce:
            weights = terms.replace(weights, ce=0.0)
        return real(self, rows, batch, weights, *args, **more)

    plant(TermLoss, "__call__", forgetful)
    with pytest.raises(TrainingError, match="another gradient than their sum"):
        check()


@pytest.mark.parametrize("shift", [-1, 1])
def test_layers_that_are_off_by_one(check: Probe, plant: Any, shift: int) -> None:
    real = LayerStates.__enter__

    plant(LayerStates, "__enter__", lambda self: _View(real(self), shift))
    with pytest.raises(TrainingError, match="off by one"):
        check()


class _View:
    """Layers as somebody would read them who counts from elsewhere."""

    def __init__(self, found: Any, shift: int) -> None:
        self.found, self.shift = found, shift

    def __getitem__(self, layer: int) -> Any:
        wrong = layer + self.shift
        return self.found[wrong if wrong in self.found else layer]


def test_a_truncated_divergence_below_zero(check: Probe, teacher: Any, plant: Any) -> None:
    live = LiveTeacher(teacher, torch.float32)

    class Top:
        def tokens(self, rows: Any, batch: Any) -> TopK:
            states = live.tokens(rows, batch)
            log_p, ids = states.output.logits(states.states).log_softmax(-1).topk(4, -1)
            return TopK(ids, log_p, torch.log1p(-log_p.exp().sum(-1)))

    none = Objective(hidden={}, attention={}, temperature=1.0)
    plain = {
        "hidden": none.hidden,
        "attention": none.attention,
        "divergence": "forward_kl",
        "temperature": 1.0,
    }
    check(signal=Top(), **plain)

    def truncated(logits: Any, top: Any, divergence: Any, temperature: Any, weights: Any) -> Any:
        log_q = logits.log_softmax(-1)
        drawn = top.log_p.exp()
        values = (drawn * (top.log_p - log_q.gather(-1, top.ids))).sum(-1)
        grad = None
        if weights is not None:
            grad = (log_q.exp() * drawn.sum(-1, keepdim=True)).scatter_add(-1, top.ids, -drawn)
        return values - 6.0, grad

    plant("potstill.distill.fused.top_k_block", truncated)
    with pytest.raises(TrainingError, match="outside of 0 and the full one"):
        check(signal=Top(), **plain)


def test_a_padded_word_that_counts(check: Probe, teacher: Any, plant: Any) -> None:
    real = teaching.dense_block

    def padded(z: Any, z_teacher: Any, *args: Any, **more: Any) -> Any:
        wide = [torch.cat([one, one.new_zeros(len(one), 400)], -1) for one in (z, z_teacher)]
        value, grad, seen = real(*wide, *args, **more)
        return value, None if grad is None else grad[:, : z.shape[-1]].contiguous(), seen

    plant("potstill.distill.fused.dense_block", padded)
    with pytest.raises(TrainingError, match="term kd"):
        check()
