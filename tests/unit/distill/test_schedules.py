"""Weights that change while training: values at each step, and what a recipe may not say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from potstill.distill.schedules import Schedule, Weight, ever, highest, weight_at


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: Weight = Field(0.5, description="Any weight.")


def test_a_number_is_the_same_at_every_step() -> None:
    assert [weight_at(0.3, step, 5) for step in range(5)] == [0.3] * 5


def test_a_straight_line_starts_at_the_first_step_and_ends_at_the_last() -> None:
    schedule = Schedule(start=1.0, end=0.0)
    assert [weight_at(schedule, step, 5) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_cosine_is_slow_at_both_ends() -> None:
    schedule = Schedule(start=0.0, end=2.0, shape="cosine")
    found = [weight_at(schedule, step, 5) for step in range(5)]
    # 1 - cos of 0, 45, 90, 135 and 180 degrees
    assert found == pytest.approx([0.0, 0.2928932188, 1.0, 1.7071067812, 2.0])
    assert (found[0], found[-1]) == (0.0, 2.0)


def test_before_and_after_the_change_the_weight_stands_still() -> None:
    schedule = Schedule(start=0.2, end=0.6, begin=0.25, until=0.75)
    found = [weight_at(schedule, step, 9) for step in range(9)]
    assert found == pytest.approx([0.2, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6])
    assert set(found[:3]) == {0.2}
    assert set(found[6:]) == {0.6}


def test_a_training_of_one_step_is_at_its_start_and_steps_past_the_plan_at_its_end() -> None:
    schedule = Schedule(start=0.2, end=0.6)
    assert weight_at(schedule, 0, 1) == 0.2
    assert weight_at(schedule, 1, 1) == 0.6
    assert weight_at(schedule, 40, 10) == 0.6


def test_ever_and_highest_look_at_both_ends() -> None:
    assert ever(0.1)
    assert not ever(0.0)
    assert ever(Schedule(start=0, end=0.1))
    assert ever(Schedule(start=0.1, end=0))
    assert not ever(Schedule(start=0, end=0))
    assert highest(0.7) == 0.7
    assert highest(Schedule(start=0.1, end=2)) == 2.0
    assert highest(Schedule(start=3, end=2)) == 3.0


def test_a_recipe_gives_a_number_or_a_schedule() -> None:
    assert _Config().weight == 0.5
    assert _Config.model_validate({"weight": 2}).weight == 2.0
    given = {"start": 1, "end": 0, "shape": "cosine", "until": 0.5}
    config = _Config.model_validate({"weight": given})
    assert config.weight == Schedule(start=1.0, end=0.0, shape="cosine", until=0.5)
    assert _Config.model_validate_json(config.model_dump_json()) == config
    assert _Config(weight=Schedule(start=0, end=1)).weight == Schedule(start=0, end=1)


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (-0.1, "greater than or equal to 0"),
        (float("inf"), "finite"),
        ("much", "valid number"),
        ({"start": -1, "end": 0}, "greater than or equal to 0"),
        ({"start": float("nan"), "end": 0}, "finite"),
        ({"start": 1}, "required"),
        ({"start": 1, "end": 0, "until": 1.5}, "less than or equal to 1"),
        ({"start": 1, "end": 0, "begin": 0.5, "until": 0.5}, "must be before until"),
        ({"start": 1, "end": 0, "begin": 1}, "must be before until"),
        ({"start": 1, "end": 0, "shape": "step"}, "'linear' or 'cosine'"),
        ({"start": 1, "end": 0, "stop": 1}, "not permitted"),
    ],
)
def test_one_mistake_is_one_error_about_what_was_meant(weight: object, what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Config.model_validate({"weight": weight})
    (error,) = caught.value.errors()
    assert error["loc"][0] == "weight"
    assert what in error["msg"]


def test_a_schedule_cannot_be_changed() -> None:
    schedule = Schedule(start=1, end=0)
    with pytest.raises(ValidationError, match="frozen"):
        schedule.start = 2.0  # type: ignore[misc]


def test_every_field_is_described_in_the_json_schema() -> None:
    schema = _Config.model_json_schema()
    fields = schema["$defs"]["Schedule"]["properties"]
    assert set(fields) == {"start", "end", "shape", "begin", "until"}
    assert all(field["description"] for field in fields.values())


def test_no_torch_is_loaded() -> None:
    code = "import sys, potstill.distill.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
