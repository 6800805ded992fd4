"""A plan refuses what clearly does not fit, and only that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import outlook
from potstill.core import machine
from potstill.core.runner import PlannedStep
from potstill.core.stage import Advice
from potstill.errors import AbsentError, MachineError, UnavailableError
from potstill.needs import ModelNeed
from potstill.outlook import CLEARLY, Plan, shortages
from potstill.recipe import Recipe

GB = 1e9


def step(name: str, action: str = "run", **estimate: float) -> PlannedStep:
    return PlannedStep(name, action, "never run here", estimate, None)


def need(reference: str, problem: str = "", size: int = 0) -> ModelNeed:
    fields = ("distill.teacher", "evaluate.teacher")
    return ModelNeed(reference, fields, None, False, size, "", False, "", problem, "Do this.")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the machine has, to be set by a test."""
    has: dict[str, Any] = {"memory": 24 * GB, "disk": 100 * GB, "gpus": []}
    monkeypatch.setattr(machine, "most_memory_bytes", lambda: has["memory"])
    monkeypatch.setattr(machine, "free_disk_bytes", lambda folder: has["disk"])
    monkeypatch.setattr(machine, "gpus", lambda: has["gpus"])
    return has


def test_too_little_memory_is_one_line_with_the_way_out(
    room: dict[str, Any], tmp_path: Path
) -> None:
    steps = [step("distill", memory_bytes=31 * GB), step("evaluate", memory_bytes=23 * GB)]
    (found,) = shortages(steps, (), tmp_path, {"distill": "Set this to half."})
    assert found.message == "distill needs about 31 GB of memory; this machine has 24 GB."
    assert found.remedy.startswith("Set this to half. Or use smaller models")
    assert found.refused
    plan = Plan(tuple(steps), (), (found,))
    assert [type(one) for one in plan.obstacles] == [MachineError]
    assert plan.tight == ()


@given(needed=st.floats(0, 1e13), have=st.floats(1e8, 1e12))
def test_memory_is_refused_from_a_clear_excess_on(needed: float, have: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "most_memory_bytes", lambda: have)
        patch.setattr(machine, "gpus", lambda: [])
        patch.setattr(machine, "free_disk_bytes", lambda folder: 1e15)
        found = shortages([step("distill", memory_bytes=needed)], (), Path.cwd(), {})
    assert bool(found) == (needed > have)
    assert any(one.refused for one in found) == (needed > CLEARLY * have)


def test_memory_is_not_refused_where_it_may_be_elsewhere_or_is_not_known(
    room: dict[str, Any], tmp_path: Path
) -> None:
    steps = [step("distill", memory_bytes=90 * GB)]
    room["gpus"] = ["A card, 80 GB"]
    (found,) = shortages(steps, (), tmp_path, {})
    assert not found.refused
    room["gpus"], room["memory"] = [], None
    assert shortages(steps, (), tmp_path, {}) == []


def test_a_stage_that_advises_points_to_it(room: dict[str, Any], tmp_path: Path) -> None:
    advice = Advice("distill.adapter", "lora", False, "it fits")
    advised = PlannedStep("distill", "run", "", {"memory_bytes": 31 * GB}, None, (advice,))
    (found,) = shortages([advised], (), tmp_path, {})
    assert "See what `potstill plan` proposes." in found.remedy


def test_disk_is_summed_over_stages_and_downloads_of_one_disk(
    room: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(outlook.hub, "cache", lambda: tmp_path / "hub")
    steps = [step("distill", disk_bytes=60 * GB), step("export", disk_bytes=20 * GB)]
    assert shortages(steps, [need("org/a", size=int(17 * GB))], tmp_path / "store", {}) == []
    (tight,) = shortages(steps, [need("org/a", size=int(30 * GB))], tmp_path / "store", {})
    assert (tight.what, tight.refused) == ("disk", False)
    (found,) = shortages(steps, [need("org/a", size=int(60 * GB))], tmp_path / "store", {})
    assert found.message.startswith("The run needs about 140 GB of disk for models and results; ")
    assert found.refused
    # A package is unpacked, and dequantised beside that.
    (package,) = shortages(steps, [need("pypi:p", size=int(10 * GB))], tmp_path / "store", {})
    assert package.needed == 80 * GB + outlook.UNPACKED * 10 * GB


def test_what_a_stage_that_goes_on_has_on_disk_already_is_not_asked_for_again(
    room: dict[str, Any], tmp_path: Path
) -> None:
    steps = [step("distill", "resume", disk_bytes=900 * GB), step("export", disk_bytes=20 * GB)]
    assert shortages(steps, (), tmp_path, {}) == []


def test_finished_stages_need_nothing_any_more(room: dict[str, Any], tmp_path: Path) -> None:
    done = [step(name, "reuse", memory_bytes=99 * GB) for name in ("distill", "evaluate")]
    assert shortages(done, (), tmp_path, {}) == []
    assert Plan(tuple(done), (need("org/a", "org/a is gone."),), ()).obstacles == ()


def test_each_obstacle_is_said_once_in_the_order_of_the_stages() -> None:
    absent = AbsentError("There is no file.", "Bring it.")
    gone = UnavailableError("org/a is gone.", "Do this.")
    steps = (
        PlannedStep("ingest", "blocked", "", {}, None, (), absent),
        PlannedStep("distill", "wait", "after ingest", {}, None, (), gone),
        step("evaluate"),
    )
    plan = Plan(steps, (need("org/a", "org/a is gone."), need("org/b", "org/b is gone.")), ())
    assert [one.message for one in plan.obstacles] == [
        "There is no file.",
        "org/a is gone.",
        "org/b is gone.",
    ]
    told = json.loads(json.dumps(plan.as_dict()))
    assert [one["error"] for one in told["obstacles"]] == ["AbsentError"] + ["UnavailableError"] * 2
    assert told["steps"][0]["problem"] == "There is no file. Bring it."
    assert [one["reference"] for one in told["downloads"]] == ["org/a", "org/b"]
    assert (len(plan), plan[0].name, [one.name for one in plan][-1]) == (3, "ingest", "evaluate")


def test_a_teacher_that_is_read_layer_by_layer_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What does not fit beside the training as a whole, but does by streaming."""
    from potstill.distill import plan as distill_plan

    data = {
        "name": "large",
        "teacher": "google/gemma-7b-it",
        "ingest": {"sources": ["sample:handbook.md"]},
        "distill": {
            "student": {"model": "google/gemma-2b-it"},
            "adapter": "qlora",
            "sequence_tokens": 512,
            "micro_tokens": 512,
            "precision": "fp32",
        },
    }
    config = Recipe.from_dict(data).distill
    resident = config.model_copy(update={"teacher_loading": "resident"})
    monkeypatch.setattr(distill_plan, "available_memory_bytes", lambda: int(24 * GB))
    assert distill_plan.memory_need(resident, 512) > CLEARLY * 24 * GB
    assert distill_plan.memory_need(config, 512) < 24 * GB
