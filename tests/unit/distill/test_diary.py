"""What a training tells: curves, speed, utilisation, held-out figures, and when it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.core.events import Emitter
from potstill.distill import diary
from potstill.distill.diary import CURVES, Clock, Diary, Meter, is_curve, open_board
from potstill.distill.terms import COUNTED_BY

TOKENS = [300, 700, 1000]
Events = Callable[[], list[dict[str, Any]]]


class Board:
    """Keeps what would be drawn."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds: a list of one number, to be set."""
    now = [100.0]
    monkeypatch.setattr(diary, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def steps_of(
    path: Path, clock: list[float], machine_flops: float, seconds: float = 4.0
) -> tuple[Board, Diary]:
    """A diary after two steps of 600 operations each."""
    board, meter = Board(), Meter(machine_flops)
    told = Diary(Emitter(path, "distill"), "distilled", TOKENS, len(TOKENS), meter, board)
    for done in (1, 2):
        told.on_step_begin(None, SimpleNamespace(global_step=done - 1), None)
        meter.flops += 600.0
        clock[0] += seconds
        told.on_step_end(None, SimpleNamespace(global_step=done), None)
    return board, told


def metrics_of(events: Events) -> dict[tuple[str, int], float]:
    found = [one for one in events() if one["kind"] == "metric"]
    assert all(one["model"] == "distilled" for one in found)
    return {(one["name"], one["step"]): one["value"] for one in found}


def test_each_step_tells_its_tokens_a_second_and_its_share_of_the_machine(
    tmp_path: Path, clock: list[float], events_of: Events
) -> None:
    board, _ = steps_of(tmp_path / "events.jsonl", clock, machine_flops=500.0)
    expected = {
        ("tokens_per_second", 1): 75.0,
        ("model_flop_utilisation", 1): 0.3,
        ("tokens_per_second", 2): 100.0,  # of this step's 400 tokens, not of all so far
        ("model_flop_utilisation", 2): 0.3,  # of this step's operations alone
    }
    assert metrics_of(events_of) == pytest.approx(expected)
    drawn = {(name.removeprefix("speed/"), step): value for name, value, step in board.scalars}
    assert drawn == pytest.approx(expected)
    progress = [one for one in events_of() if one["kind"] == "progress"]
    assert progress[0] | {"done": 1, "total": 3, "tokens": 300, "step": "distilled"} == progress[0]


def test_a_machine_that_was_not_measured_has_no_utilisation(
    tmp_path: Path, clock: list[float], events_of: Events
) -> None:
    steps_of(tmp_path / "events.jsonl", clock, machine_flops=0.0)
    assert {name for name, _ in metrics_of(events_of)} == {"tokens_per_second"}


def test_a_step_that_took_no_time_is_no_division_by_zero(
    tmp_path: Path, clock: list[float], events_of: Events
) -> None:
    steps_of(tmp_path / "events.jsonl", clock, machine_flops=500.0, seconds=0.0)
    assert metrics_of(events_of)["tokens_per_second", 1] > 1e9


def test_the_log_becomes_curves_and_held_out_figures_and_nothing_else(
    tmp_path: Path, clock: list[float], events_of: Events
) -> None:
    _, told = steps_of(tmp_path / "events.jsonl", clock, machine_flops=0.0)
    logs = {"loss": 2.0, "kd": 1.5, "grad_norm_kd": 0.1, "eval_kl": 0.7, "epoch": 1.0, "tokens": 9}
    told.on_log(None, SimpleNamespace(global_step=7), None, logs=logs)
    told.on_log(None, SimpleNamespace(global_step=8), None)  # nothing was logged
    found = {name: value for (name, step), value in metrics_of(events_of).items() if step > 2}
    assert found == {"loss": 2.0, "kd": 1.5, "grad_norm_kd": 0.1, "validation_kl": 0.7}


def test_every_term_of_the_loss_and_its_gradient_is_a_curve() -> None:
    for term in COUNTED_BY:
        assert is_curve(term)
        assert is_curve(f"grad_norm_{term}")
    assert all(map(is_curve, CURVES))
    for name in ("eval_loss", "epoch", "tokens", "step", "total_flos", "train_loss", "kd_other"):
        assert not is_curve(name)


def test_the_clock_asks_for_a_checkpoint_when_the_last_is_too_long_ago(clock: list[float]) -> None:
    asking = Clock(minutes=2.0)
    control = SimpleNamespace(should_save=False)
    clock[0] += 120.0
    assert not asking.on_step_end(None, None, control).should_save
    clock[0] += 1.0
    assert asking.on_step_end(None, None, control).should_save
    asking.on_save(None, None, control)
    control.should_save = False
    clock[0] += 119.0
    assert not asking.on_step_end(None, None, control).should_save


def test_a_resumed_board_takes_back_what_was_drawn_past_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps, value in ((None, range(1, 6), 1.0), (3, range(4, 5), 2.0)):
        board = open_board(tmp_path, resumed)
        for step in steps:
            board.add_scalar("loss", value, step)
        board.close()
    seen = EventAccumulator(str(tmp_path))
    seen.Reload()
    assert [(one.step, one.value) for one in seen.Scalars("loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
    ]
