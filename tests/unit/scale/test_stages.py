"""Which stage's work goes to workers, and what of it."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.distill import CorrectConfig, DistillConfig
from potstill.distill.extractive import SpanDistillConfig
from potstill.evaluate import EvaluateConfig
from potstill.evaluate.extractive import SpanEvaluateConfig
from potstill.scale import evaluate, train
from potstill.scale.place import Place
from potstill.scale.stages import on_ray

HERE, AWAY = Place("ray", workers=3, threads=2), Place("ray://head:10001", workers=3)
SHARED = Place("ray://head:10001", shared=True)


@pytest.mark.parametrize(
    ("stage", "config", "place", "expected"),
    [
        ("distill", DistillConfig(), HERE, "own"),
        ("distill", DistillConfig(processes=2), HERE, ("ray", 2, 2)),
        ("distill", DistillConfig(processes="auto"), HERE, ("ray", 3, 2)),
        ("distill", DistillConfig(processes="auto"), SHARED, "own"),
        ("distill", DistillConfig(processes=4), SHARED, ("ray://head:10001", 4, 1)),
        ("distill", DistillConfig(processes=4), AWAY, "own"),
        ("correct", CorrectConfig(processes=2), HERE, "own"),  # nothing is corrected
        ("correct", CorrectConfig(method="full", processes=2), HERE, ("ray", 2, 2)),
        ("distill", SpanDistillConfig.model_construct(), HERE, "own"),
    ],
)
def test_where_a_training_runs(
    stage: str, config: Any, place: Place, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    def own(*arguments: Any) -> None:
        ran.append("own")

    def there(address: str, *arguments: Any, workers: int, threads: int) -> None:
        ran.append((address, workers, threads))

    monkeypatch.setattr(train, "distill_on_ray", there)
    warned: list[str] = []
    context = SimpleNamespace(events=SimpleNamespace(warning=warned.append))
    on_ray(stage, own, asdict(place))(config, {}, None, context)  # type: ignore[arg-type]
    assert ran == [expected]
    assert bool(warned) == (place is AWAY)


@pytest.mark.parametrize(
    ("config", "place", "expected"),
    [
        (EvaluateConfig(), HERE, "ray"),
        (EvaluateConfig(), SHARED, "ray"),
        (EvaluateConfig(), AWAY, "own"),
        (SpanEvaluateConfig(), HERE, "own"),
    ],
)
def test_where_models_are_evaluated(
    config: Any, place: Place, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(evaluate, "spread", lambda *arguments: ran.append("ray"))
    warned: list[str] = []
    context = SimpleNamespace(events=SimpleNamespace(warning=warned.append))
    stage = on_ray("evaluate", lambda *arguments: ran.append("own"), asdict(place))
    stage(config, {}, None, context)  # type: ignore[arg-type]
    assert ran == [expected]
    assert bool(warned) == (place is AWAY)


def test_a_stage_without_work_for_others_is_its_own_function() -> None:
    def function(*what: object) -> None:
        """Does something."""

    assert on_ray("curate", function, asdict(HERE)) is function
    assert on_ray("ingest", function, asdict(HERE)) is not function
    assert on_ray("generate", function, asdict(HERE)) is not function
