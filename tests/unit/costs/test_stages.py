"""Whole recipes on clusters, through the plan and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import potstill
from potstill.cli import app
from potstill.costs import accelerators
from potstill.costs.trainings import AUTO_LARGEST
from potstill.recipe import Recipe

NAMES = ["ingest", "generate", "curate", "correct", "distill", "evaluate", "export"]


@pytest.mark.parametrize("name", sorted(accelerators()))
def test_every_stage_of_the_quickstart_fits_everywhere(name: str, tmp_path: Path) -> None:
    plan = potstill.plan(Recipe.load("quickstart"), tmp_path, cluster=name)
    assert plan.cluster is not None
    assert [one.name for one in plan.cluster.stages] == NAMES
    assert plan.cluster.fits
    for one in plan.cluster.stages:
        assert one.seconds == 0 or one.binds in one.by_resource
        assert one.seconds >= max(one.by_resource.values(), default=0.0) * 0.999


@pytest.mark.parametrize("recipe", ["chat-gguf", "gpt2-qa", "squad-lora", "extractive-qa"])
def test_every_built_in_recipe_has_a_plan_on_a_cluster(recipe: str, tmp_path: Path) -> None:
    plan = potstill.plan(Recipe.load(recipe), tmp_path, cluster="2x8xH100")
    assert plan.cluster is not None
    assert plan.cluster.seconds > 0
    json.dumps(plan.as_dict())


def test_without_a_cluster_nothing_is_said_of_one(tmp_path: Path) -> None:
    plan = potstill.plan(Recipe.load("quickstart"), tmp_path)
    assert plan.cluster is None
    assert plan.as_dict()["cluster"] is None


def test_what_does_not_fit_names_the_nearest_change(tmp_path: Path) -> None:
    teacher = "teacher=nobody/Large-70B"
    plan = potstill.plan(Recipe.load("quickstart", [teacher]), tmp_path, cluster="8xA100-40GB")
    assert plan.cluster is not None
    found = {one.name: one for one in plan.cluster.stages}
    assert not found["distill"].fits
    assert any("distill.student={model:" in one for one in found["distill"].changes)
    assert found["generate"].changes == ("generate.teacher behind an address or --cluster B200",)
    assert found["evaluate"].changes == ("evaluate.dtype=bfloat16", "--cluster B200")
    again = [teacher, "evaluate.dtype=bfloat16"]
    plan = potstill.plan(Recipe.load("quickstart", again), tmp_path, cluster="B200")
    assert plan.cluster is not None
    (evaluate,) = (one for one in plan.cluster.stages if one.name == "evaluate")
    assert evaluate.fits
    student = ["distill.student={model: nobody/Small-7B}", teacher]
    for asked, how, changes in (
        ([], "DDP", ("distill.sharding=fsdp",)),
        (["distill.sharding=fsdp"], "FSDP", ()),
        (["distill.sharding=deepspeed"], "ZeRO-2", ()),
        (["distill.sharding=deepspeed", "distill.deepspeed.zero_stage=3"], "ZeRO-3", ()),
        (["distill.adapter=lora"], "DDP", ()),
    ):
        recipe = Recipe.load("quickstart", [*student, *asked])
        plan = potstill.plan(recipe, tmp_path, cluster="8xA100-80GB")
        assert plan.cluster is not None
        (distill,) = (one for one in plan.cluster.stages if one.name == "distill")
        assert (distill.how, distill.changes, distill.fits) == (how, changes, not changes)
        assert "reading" in distill.parts  # a teacher of 141 GB, two layers at a time
        assert distill.parts["reading"] < 10e9


def test_assistants_and_the_students_own_answers_are_reckoned(tmp_path: Path) -> None:
    def seconds(*settings: str) -> float:
        plan = potstill.plan(Recipe.load("quickstart", settings), tmp_path, cluster="L40S")
        assert plan.cluster is not None
        (distill,) = (one for one in plan.cluster.stages if one.name == "distill")
        return distill.seconds

    plain = seconds("distill.signal=live")
    assert seconds("distill.signal=live", "distill.on_policy.share=0.5") > 1.1 * plain
    assistant = "distill.assistants=[{parameters_ratio: 0.9}]"
    assert seconds("distill.signal=live", assistant) > 1.3 * plain


def test_an_endpoint_is_bound_by_its_requests_a_minute(tmp_path: Path) -> None:
    slow = [
        "generate.teacher=openai:large",
        "generate.backend=auto",
        "generate.endpoint={base_url: 'http://127.0.0.1:9/v1', requests_per_minute: 10}",
    ]
    plan = potstill.plan(Recipe.load("quickstart", slow), tmp_path, cluster="8xH100")
    assert plan.cluster is not None
    (generate,) = (one for one in plan.cluster.stages if one.name == "generate")
    assert (generate.how, generate.binds) == ("endpoint", "requests")
    assert generate.seconds == pytest.approx(6 * plan[1].estimate["requests"], rel=0.05)


def test_the_command_shows_it_and_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    called = ["plan", "quickstart", "--project", str(tmp_path), "--cluster"]
    shown = runner.invoke(app, [*called, "8xh100"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert "interconnect" in shown.output
    assert "40% of compute" in shown.output
    made = json.loads(runner.invoke(app, [*called, "8xH100", "--json"]).output)
    assert made["cluster"]["cluster"]["name"] == "8xH100"
    wrong = runner.invoke(app, [*called, "8xH10"])
    assert type(wrong.exception).__name__ == "UsageError"


def test_auto_comes_to_what_the_engine_comes_to() -> None:
    from potstill.distill.signals import LARGEST_CACHE

    assert AUTO_LARGEST == LARGEST_CACHE
