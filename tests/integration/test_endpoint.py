"""A teacher behind an address in a whole run: rows, costs, budget, kills, and no key anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from killed_generation import kill_generation
from mock_endpoint import Limits, MockEndpoint

from potstill import pipeline, sample
from potstill.core.events import read_events
from potstill.display import plan_table
from potstill.errors import BudgetError, ModelError, RecipeError, TeacherError
from potstill.inference import keys as keys_module
from potstill.recipe import Recipe

SECRET, REVOKED = "sk-live-5e1f0c77a9", "sk-gone-00b1c2d3e4"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOOD_KEY", SECRET)
    monkeypatch.setenv("GONE_KEY", REVOKED)
    monkeypatch.setattr(keys_module, "BACKOFF_SECONDS", 0.02)
    text = sample.sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    return tmp_path


def recipe(small: dict[str, Any], url: str, **generate: Any) -> Recipe:
    """The small recipe with a teacher behind that address for the rows."""
    endpoint = {
        "base_url": url,
        "keys": ["GONE_KEY", "GOOD_KEY"],
        "price_per_million_input": 3.0,
        "price_per_million_output": 15.0,
    }
    section = {"teacher": "openai:big", "pairs_per_chunk": 3, "endpoint": endpoint} | generate
    return Recipe.from_dict(small | {"generate": section})


def keyed(**more: Any) -> MockEndpoint:
    return MockEndpoint({SECRET: Limits(), REVOKED: Limits(revoked=True)}, **more)


def events(project: Path) -> list[dict[str, Any]]:
    return read_events(project / "runs" / "small" / "events.jsonl")[0]


def assert_no_key_in(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert REVOKED.encode() not in content, path


@pytest.mark.whole
def test_a_run_with_a_local_model_for_the_rest(project: Path, small_recipe: dict[str, Any]) -> None:
    def behave(n: int, seen: Any) -> Any:
        if n == 5:
            return 500, {}, "an echo of {key}"
        if n == 7:
            return 400, {}, json.dumps({"error": {"message": "prompt of {key} refused"}})
        return "garbage" if n == 9 else None

    with keyed(behave=behave) as server:
        this = recipe(small_recipe, server.url)
        quoted = {step.name: step.estimate for step in pipeline.plan(this, project)}["generate"]
        assert quoted["money"] > 0
        assert plan_table(pipeline.plan(this, project)).columns[-1].header == "fees"
        run = pipeline.run(this, project, until="distill")
        asked = server.count
        again = pipeline.run(this, project, until="distill")
        assert server.count == asked
    assert run.artifact("distill").path("models/distilled/model.safetensors").is_file()
    examples = run.artifact("generate").path("examples.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in examples.splitlines()]
    assert {row["provenance"]["teacher"] for row in rows} == {"openai:big"}
    told = events(project)
    warned = [one["message"] for one in told if one["kind"] == "warning"]
    assert any("GONE_KEY" in one for one in warned)
    costs = [one["value"] for one in told if one["kind"] == "metric" and one["name"] == "cost"]
    assert len(costs) == 1
    assert 0.1 < costs[0] / quoted["money"] < 10
    paces = [one for one in told if one["kind"] == "progress" and "cost" in one]
    assert paces[-1]["tokens_per_second"] > 0
    assert "seconds_left" in paces[-1]
    assert_no_key_in(project)
    assert again.record["stages"]["generate"]["reused"]


@pytest.mark.whole
def test_the_budget_stops_a_run_that_goes_on_later_without_paying_twice(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    def capped(url: str, requests: int) -> Recipe:
        return recipe(small_recipe, url, budget={"requests": requests})

    with keyed() as server:
        for cap in (4, 9):
            with pytest.raises(BudgetError, match=f"budget of {cap} requests") as caught:
                pipeline.run(capped(server.url, cap), project, until="generate")
            assert "generate.budget.requests" in caught.value.hint
            assert sum(server.answered.values()) == cap
        run = pipeline.run(capped(server.url, 10_000), project, until="generate")
        assert server.repeated == 0
    with keyed() as calm:
        other = project / "calm"
        other.mkdir()
        (other / "notes.md").write_bytes((project / "notes.md").read_bytes())
        undisturbed = pipeline.run(capped(calm.url, 10_000), other, until="generate")
        assert sum(calm.answered.values()) == sum(server.answered.values())
    for name in ("examples.jsonl", "rejected.jsonl"):
        texts = [one.artifact("generate").path(name).read_bytes() for one in (run, undisturbed)]
        assert texts[0] == texts[1]


def test_another_run_of_the_project_pays_for_nothing_that_was_answered(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    with keyed() as server:
        pipeline.run(recipe(small_recipe, server.url), project, until="generate")
        asked = sum(server.answered.values())
        more = recipe(small_recipe, server.url, max_answer_words=7)
        named = more.model_copy(update={"name": "other"})
        run = pipeline.run(named, project, until="generate")
        assert not run.record["stages"]["generate"]["reused"]
        assert server.repeated == 0
        assert sum(server.answered.values()) < 1.5 * asked
    figures = {
        one["name"]: one["value"]
        for one in read_events(run.events)[0]
        if one["kind"] == "metric" and one["stage"] == "generate"
    }
    assert figures["requests_replayed"] > 0


def test_a_dry_run_with_the_fake_costs_nothing(project: Path, small_recipe: dict[str, Any]) -> None:
    dry = recipe(small_recipe, "http://127.0.0.1:1/v1", backend="fake", budget={"money": 1e-9})
    pipeline.run(dry, project, until="generate")
    assert not any("cost" in one or one.get("name") == "cost" for one in events(project))


@pytest.mark.parametrize(
    "trouble",
    [
        (401, {}, "{key}"),
        *(
            pytest.param(one, marks=pytest.mark.whole)
            for one in ("html", "garbage", "drop", (404, {}, "{}"))
        ),
    ],
)
def test_a_useless_endpoint_is_one_error_and_no_key_is_shown(
    project: Path, small_recipe: dict[str, Any], trouble: Any
) -> None:
    with (
        MockEndpoint(behave=lambda n, seen: trouble) as server,
        pytest.raises(TeacherError, match=r"127\.0\.0\.1") as caught,
    ):
        pipeline.run(recipe(small_recipe, server.url), project, until="generate")
    assert server.count < 40
    assert SECRET not in str(caught.value)
    assert_no_key_in(project)


def test_a_missing_key_is_told_before_anything_runs(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOD_KEY")
    monkeypatch.delenv("GONE_KEY")
    with pytest.raises(ModelError, match="GONE_KEY, GOOD_KEY"):
        pipeline.run(recipe(small_recipe, "http://127.0.0.1:1/v1"), project)
    assert not (project / "store" / "ingest").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "openai:big"}, "distill.teacher is openai:big"),
        ({"distill": {"teacher": "openai:big"}}, "distill.teacher is openai:big"),
        ({"generate": {"teacher": "openai:big"}}, "generate.endpoint.base_url"),
        ({"generate": {"teacher": "openai:", "endpoint": {"base_url": "http://h"}}}, "names no"),
        ({"generate": {"endpoint": {"base_url": "http://h"}}}, "generate.teacher: openai:MODEL"),
        (
            {"generate": {"teacher": "openai:m", "backend": "llamacpp",
                          "endpoint": {"base_url": "http://h"}}},
            "set backend to auto",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_error_in_the_recipe(
    small_recipe: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict(small_recipe | change)


def test_the_top_may_name_the_endpoint_if_the_other_stages_name_a_local_model(
    small_recipe: dict[str, Any],
) -> None:
    local = {"teacher": small_recipe["teacher"]}
    sections = ("ingest", "distill", "evaluate", "export")
    change: dict[str, Any] = {name: small_recipe.get(name, {}) | local for name in sections}
    change["generate"] = {"endpoint": {"base_url": "http://127.0.0.1:1/v1"}}
    recipe = Recipe.from_dict(small_recipe | change | {"teacher": "openai:big"})
    assert recipe.generate.teacher == "openai:big"
    assert recipe.distill.teacher == local["teacher"]


def test_killed_generation_repeats_no_more_than_was_in_flight(tmp_path: Path) -> None:
    outcome = kill_generation(tmp_path, kills=4, chunks=12)
    assert outcome.same
    assert outcome.answered_again <= outcome.sent_again <= outcome.allowed


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    outcome = kill_generation(tmp_path, kills=50, chunks=120)
    assert outcome.kills == 50
    assert outcome.same
    assert outcome.answered_again <= outcome.sent_again <= outcome.allowed
