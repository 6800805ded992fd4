"""The diary keeps whole lines and can be read while it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.core.events import Emitter, follow, read_events


def test_a_torn_last_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Emitter(path, "distill").metric("loss", 1.5, step=3)
    with path.open("a") as file:
        file.write('{"kind": "half')
    events, place = read_events(path)
    assert [event["name"] for event in events] == ["loss"]
    with path.open("a") as file:
        file.write('"}\n')
    later, _ = read_events(path, place)
    assert later == [{"kind": "half"}]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown event kind"):
        Emitter(tmp_path / "events.jsonl").emit("exploded")


def test_following_ends_after_the_last_event_of_a_dead_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    emitter = Emitter(path, "ingest")
    emitter.progress(0, 2, "files")
    emitter.progress(2, 2, "files")
    assert [event["done"] for event in follow(path, 0, lambda: False)] == [0, 2]


def test_progress_is_thinned_but_its_end_is_always_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    emitter = Emitter(path, "ingest")
    for done in range(1001):
        emitter.progress(done, 1000, "rows")
    events, _ = read_events(path)
    assert len(events) < 100
    assert events[-1]["done"] == 1000
