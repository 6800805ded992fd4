"""Which trainings go to Ray's workers, and which stay where the run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.core.events import Emitter, read_events
from potstill.core.stage import Context, Draft
from potstill.distill import CorrectConfig, DistillConfig
from potstill.scale import train
from potstill.scale.place import Place
from potstill.scale.stages import on_ray


@pytest.mark.parametrize(
    ("config", "place", "workers"),
    [
        (DistillConfig(processes=3), Place("ray", threads=2), 3),
        (DistillConfig(processes=3), Place("ray://head:10001", shared=True), 3),
        (DistillConfig(processes=3), Place("ray://head:10001"), None),
        (DistillConfig(), Place("ray"), None),
        (CorrectConfig(method="full", processes=2), Place("ray"), 2),
        (CorrectConfig(processes=2), Place("ray"), None),
    ],
    ids=["here", "shared", "not shared", "one process", "correction", "no correction"],
)
def test_several_processes_are_rays_workers_where_files_are_seen(
    config: Any, place: Place, workers: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []
    stayed: list[Any] = []
    monkeypatch.setattr(
        train,
        "distill_on_ray",
        lambda address, *_, workers, threads: asked.append((address, workers, threads)),
    )
    diary = tmp_path / "events.jsonl"
    context = Context(tmp_path, tmp_path, 7, 1, Emitter(diary, "distill"))
    stage = "correct" if isinstance(config, CorrectConfig) else "distill"
    function = on_ray(stage, lambda *given: stayed.append(given), vars(place))
    function(config, {}, Draft(tmp_path), context)
    if workers is None:
        assert (len(stayed), asked) == (1, [])
    else:
        assert (stayed, asked) == ([], [(place.address, workers, place.threads)])
    told = [event["message"] for event in read_events(diary)[0]]
    assert bool(told) == (not place.sees_files and workers is None)
