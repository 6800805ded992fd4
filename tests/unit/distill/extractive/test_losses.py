"""The loss of marks against a plain version in float64, and how it is reduced."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from span_models import save_span_model, word_tokenizer

from potstill.core.events import Emitter
from potstill.distill.extractive.config import SpanDistillConfig
from potstill.distill.extractive.lessons import Lesson, batch_of, lessons_of, micros, plan
from potstill.distill.extractive.losses import ce_sum, kd_sum, log_places
from potstill.distill.extractive.training import Goal, SpanTraining
from potstill.distill.schedules import rate_factor
from potstill.models.spans.marks import Marks
from potstill.models.spans.model import load_span_model
from potstill.models.spans.rows import SpanRow
from potstill.records import Example, Provenance, Turn

PASSAGE = "the boiler of unit holds litres and the keeper notes the time in the log"


def row(number: int, word: str | None) -> SpanRow:
    turns = (Turn(role="user", content="q"), Turn(role="assistant", content=word or "none"))
    example = Example(
        id=f"row-{number}",
        turns=turns,
        question="what",
        provenance=Provenance(document="d", chunk="c"),
    )
    start = PASSAGE.index(word) if word else None
    end = None if start is None or word is None else start + len(word)
    passage = PASSAGE if number % 2 else PASSAGE[:40]
    return SpanRow(f"row-{number}", "what is the", passage, start, end, example)


ROWS = [row(n, word) for n, word in enumerate(["boiler", "time", "unit holds", "log", None, "the"])]
MARKS = {
    one.id: Marks(
        id=one.id, spans=((4, 10), (19, 24), (4, 18)), log_p=(-1.0, -2.0, -1.5), none=-3.0
    )
    for one in ROWS[:5]
}


def lessons(temperature: float = 1.0, window: int = 40) -> list[Lesson]:
    return lessons_of(
        ROWS,
        MARKS,
        word_tokenizer(),
        window_tokens=window,
        window_overlap=2,
        temperature=temperature,
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 500),
    tokens=st.integers(2, 12),
    count=st.integers(1, 4),
    temperature=st.floats(0.5, 5.0),
)
def test_both_terms_are_what_they_are_in_float64(
    seed: int, tokens: int, count: int, temperature: float
) -> None:
    lot = torch.Generator().manual_seed(seed)
    starts, ends = (3 * torch.randn(count, tokens, generator=lot) for _ in range(2))
    places = torch.rand(count, tokens, generator=lot) < 0.7
    places[:, 0] = True
    raw = torch.rand(count, 2, tokens, generator=lot) * places[:, None]
    raw[:, :, 0] += 0.01
    teacher = raw / raw.sum(-1, keepdim=True)
    targets = torch.stack([torch.tensor([int(one.nonzero()[-1]), 0]) for one in places])
    ce = kd = 0.0
    for window in range(count):
        allowed = [at for at in range(tokens) if places[window, at]]
        for side, logits in enumerate((starts, ends)):
            values = {at: float(logits[window, at]) for at in allowed}
            whole = math.log(sum(math.exp(one) for one in values.values()))
            ce -= values[int(targets[window, side])] - whole
            hot = {at: one / temperature for at, one in values.items()}
            whole = math.log(sum(math.exp(one) for one in hot.values()))
            for at in allowed:
                p = float(teacher[window, side, at])
                if p:
                    kd += p * (math.log(p) - (hot[at] - whole))
    assert float(ce_sum(starts, ends, places, targets)) == pytest.approx(ce / 2, rel=1e-4, abs=1e-4)
    found = float(kd_sum(starts, ends, places, teacher, temperature))
    assert found == pytest.approx(temperature**2 * kd / 2, rel=1e-3, abs=1e-3)
    assert found >= -1e-4


def test_the_gradient_is_the_difference_of_the_distributions() -> None:
    starts = torch.randn(1, 6, requires_grad=True)
    ends = torch.zeros(1, 6)
    places = torch.tensor([[True, False, True, True, True, False]])
    teacher = torch.tensor([[[0.1, 0, 0.2, 0.3, 0.4, 0], [1.0, 0, 0, 0, 0, 0]]])
    (grad,) = torch.autograd.grad(kd_sum(starts, ends, places, teacher, 2.0), starts)
    # T^2 * 1/T * (q - p) / 2: only the places move.
    wanted = (log_places(starts, places, 2.0).exp() - teacher[:, 0]).detach()
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)
    assert grad[0, 1] == grad[0, 5] == 0


def training(folder: Path, work: Path, **fields: object) -> SpanTraining:
    config = SpanDistillConfig.model_validate(
        {"student": {"model": "x"}, "learning_rate": 1e-2, "batch_size": 4, "epochs": 3,
         "validations": 3, "window_overlap": 8, "window_tokens": 40, "temperature": 2.0, **fields}
    )  # fmt: skip
    found = lessons(2.0)
    return SpanTraining(
        load_span_model(folder),
        word_tokenizer(),
        found,
        found[:3],
        plan(len(found), config.epochs, config.batch_size, 0),
        Goal(0.7, 1.3, 2.0),
        config=config,
        dtype=torch.float32,
        name="distilled",
        work=work,
        tensorboard=work / "board",
        events=Emitter(None),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_span_model(tmp_path_factory.mktemp("spans") / "model", dropout=0.0)


def test_a_step_does_not_depend_on_how_it_is_computed_in_parts(
    folder: Path, tmp_path: Path
) -> None:
    found = []
    for most in (40, 100, 10_000):
        one = training(folder, tmp_path, micro_tokens=most)
        figures = one.gradients(lessons(2.0))
        found.append((figures, [p.grad for p in one.parameters if p.grad is not None]))
    assert len(list(micros(lessons(2.0), 40))) > len(list(micros(lessons(2.0), 100))) > 1
    for figures, gradients in found[1:]:
        assert figures == pytest.approx(found[0][0], rel=1e-5)
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # The mean over windows of what each is alone.
    alone = training(folder, tmp_path)
    each = [alone.gradients([one])["loss"] for one in lessons(2.0)]
    assert found[0][0]["loss"] == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_a_row_that_the_teacher_did_not_read_has_only_its_span(folder: Path) -> None:
    model, tokenizer = load_span_model(folder), word_tokenizer()
    untaught = [one for one in lessons() if one.row == "row-5"]
    assert untaught
    assert all(one.teacher is None for one in untaught)
    batch = batch_of(model, tokenizer, untaught)
    value = kd_sum(torch.randn(1, batch.places.shape[1]), torch.zeros(1, batch.places.shape[1]),
                   batch.places[:1], batch.teacher[:1], 1.0)  # fmt: skip
    assert value == 0


def test_every_epoch_sees_each_window_once_in_another_order() -> None:
    steps = plan(10, 2.5, 4, seed=3)
    flat = [one for step in steps for one in step]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert len(flat) == 25
    assert [len(step) for step in steps] == [4] * 6 + [1]
    assert steps == plan(10, 2.5, 4, seed=3) != plan(10, 2.5, 4, seed=4)


def test_the_rate_goes_up_and_straight_down() -> None:
    rates = [rate_factor(step, 10, 2, "linear") for step in range(10)]
    assert max(rates) == rates[2] == 1.0
    assert rates[0] < rates[1] < rates[2]
    steps = [a - b for a, b in pairwise(rates[2:])]
    assert steps == pytest.approx([1 / 8] * 7)
    assert rates[-1] > 0


class KilledError(Exception):
    """Stands for a kill at any moment."""


def test_a_killed_training_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_span_model(tmp_path / "model", dropout=0.2)  # random numbers must go on too
    whole = training(folder, tmp_path / "whole")
    undisturbed = whole.run(len(whole.plan), 0, seed=5)
    real = SpanTraining._step

    def killed(self: SpanTraining, board: object) -> None:
        if self.state.step == 3:
            raise KilledError
        real(self, board)

    monkeypatch.setattr(SpanTraining, "_step", killed)
    with pytest.raises(KilledError):
        training(folder, tmp_path / "cut").run(len(whole.plan), 0, seed=5)
    monkeypatch.setattr(SpanTraining, "_step", real)
    again = training(folder, tmp_path / "cut")
    assert again.run(len(whole.plan), 0, seed=5) == undisturbed
    for one, other in zip(again.parameters, whole.parameters, strict=True):
        assert torch.equal(one, other)


def test_training_learns_and_keeps_the_best_weights(folder: Path, tmp_path: Path) -> None:
    one = training(folder, tmp_path, epochs=20)
    came = one.run(len(one.plan), 0, seed=1)
    losses = {row["step"]: row["loss"] for row in came.history["validation"]}
    assert losses[came.best_step] == min(losses.values()) < 0.5 * losses[0]
    assert one.held_out()["loss"] == pytest.approx(losses[came.best_step], rel=1e-5)
    assert {"step", "tokens", "loss", "ce", "kd", "grad_norm", "learning_rate"} == set(
        came.history["steps"][0]
    )


def test_it_stops_after_validations_that_bring_nothing(folder: Path, tmp_path: Path) -> None:
    one = training(folder, tmp_path, learning_rate=1.0, epochs=30, validations=30)
    came = one.run(len(one.plan), 2, seed=1)
    assert came.stopped_early
    assert came.steps < len(one.plan)
