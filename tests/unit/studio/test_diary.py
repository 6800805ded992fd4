"""What a run's page knows of it is what its diary says, however it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studio_runs import browser, make_run, write_events

from potstill.core.claims import claimed, holder
from potstill.core.processes import GONE, mark_of
from potstill.studio.diary import MOST_MEMORY, Diary
from potstill.studio.launch import BEGIN, LOG, last_words, tail
from potstill.studio.run_page import curves_of
from potstill.studio.runs import find_run

STARTED: dict[str, Any] = {"kind": "run_started", "name": "made", "stages": ["ingest", "distill"]}
TRAINING = [
    {"kind": "started", "stage": "distill", "key": "k", "resumed": False},
    *(
        {"kind": "metric", "stage": "distill", "name": "loss", "value": 3 - step, "step": step,
         "model": "distilled"}
        for step in range(3)
    ),
]  # fmt: skip


def diary_of(folder: Path, *events: dict[str, Any]) -> Diary:
    folder.mkdir(exist_ok=True)
    write_events(folder, events)
    diary = Diary(folder / "events.jsonl")
    diary.refresh()
    return diary


def progress(done: float, total: float = 100) -> dict[str, Any]:
    return {"kind": "progress", "stage": "ingest", "done": done, "total": total, "unit": "files"}


def test_stages_progress_rate_and_time_left(tmp_path: Path) -> None:
    begun = {"kind": "started", "stage": "ingest", "key": "k"}
    diary = diary_of(tmp_path, STARTED, begun, *(progress(2 * n) for n in range(11)))
    assert [one.state for one in diary.stages.values()] == ["running", "waiting"]
    now = diary.stages["ingest"].now
    assert now is not None
    assert now[1].share == pytest.approx(0.2)
    assert now[1].rate == pytest.approx(2.0)  # the events are a second apart
    assert now[1].seconds_left == pytest.approx(40.0)


def test_a_stage_that_says_how_far_it_is_as_a_whole_is_shown_so(tmp_path: Path) -> None:
    attempt = progress(12, 12) | {"step": "attempt 2", "share": 0.25, "seconds_left": 90.0}
    now = diary_of(tmp_path, STARTED, attempt).stages["ingest"].now
    assert now is not None
    assert (now[1].share, now[1].seconds_left) == (0.25, 90.0)


def test_a_rate_is_of_the_last_minute_and_starts_anew_with_the_work(tmp_path: Path) -> None:
    slow = [progress(n, 1000) for n in range(100)]
    fast = [progress(100 + 5 * n, 1000) for n in range(61)]
    diary = diary_of(tmp_path, STARTED, *slow, *fast)
    now = diary.stages["ingest"].now
    assert now is not None
    assert now[1].rate == pytest.approx(5.0, rel=0.02)
    write_events(tmp_path, [progress(0, 1000)])
    diary.refresh()
    assert diary.stages["ingest"].now[1].rate is None  # type: ignore[index]


def test_it_is_read_on_and_a_torn_or_foreign_line_spoils_nothing(tmp_path: Path) -> None:
    diary = diary_of(tmp_path, STARTED)
    with diary.path.open("a") as file:
        file.write(
            '{"kind": "metric"}\nnot json\n[1]\n{"time": "x", "kind": "skipped"}\n{"time": 1'
        )
    diary.refresh()
    assert diary.state == "running"
    before = diary.version
    diary.refresh()
    assert diary.version == before
    diary.path.write_text(json.dumps({"time": 1.0, "stage": "", "kind": "run_finished"}) + "\n")
    diary.refresh()  # another diary in its place
    assert (diary.state, diary.stages) == ("finished", {})


def test_a_resumed_training_goes_on_with_its_curve_and_a_new_one_begins_anew(
    tmp_path: Path,
) -> None:
    diary = diary_of(tmp_path, STARTED, *TRAINING)
    key = ("distill", "distilled", "loss")
    assert diary.curves[key] == {0: 3.0, 1: 2.0, 2: 1.0}
    again = {**TRAINING[0], "resumed": True}
    write_events(tmp_path, [STARTED, again, {**TRAINING[-1], "value": 0.5}])
    diary.refresh()
    assert diary.curves[key] == {0: 3.0, 1: 2.0, 2: 0.5}
    assert len(curves_of(diary)) == 1
    write_events(tmp_path, [STARTED, TRAINING[0]])
    diary.refresh()
    assert key not in diary.curves


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "new"),
        ([STARTED], "stopped"),  # nobody works on it
        ([STARTED, {"kind": "run_finished", "seconds": 1}], "finished"),
        ([STARTED, {"kind": "run_failed", "error": "X", "message": "It broke."}], "failed"),
        (
            [STARTED, {"kind": "run_failed", "error": "X", "message": "It broke."}, STARTED],
            "stopped",
        ),
    ],
)
def test_a_runs_state_is_what_its_diary_and_its_process_say(
    tmp_path: Path, events: list[dict[str, Any]], state: str
) -> None:
    folder = make_run(tmp_path, events=events)
    client, studio = browser(tmp_path)
    assert find_run(studio, "made").state == state
    page = client.get("/runs/made").text
    assert f'class="state {state}"' in page
    with claimed(folder, "The run made"):
        assert find_run(studio, "made").live
        assert "Stop</button>" in client.get("/runs/made").text


def test_a_failure_is_shown_with_the_way_out(tmp_path: Path) -> None:
    failed = {
        "kind": "failed",
        "stage": "ingest",
        "error": "X",
        "message": "M <b>",
        "hint": "Do so.",
    }
    ended = {"kind": "run_failed", "error": "X", "message": "M <b>"}
    make_run(tmp_path, events=[STARTED, failed, ended])
    client, _ = browser(tmp_path)
    page = client.get("/runs/made").text
    assert "M &lt;b&gt;" in page
    assert "Do so." in page
    assert "M &lt;b&gt;" in client.get("/").text


def test_a_failed_stage_offers_its_log_if_it_logged_and_its_rows_page_is_no_dead_end(
    tmp_path: Path,
) -> None:
    failed = {"kind": "failed", "stage": "ingest", "error": "X", "message": "M", "hint": ""}
    ended = {"kind": "run_failed", "error": "X", "message": "M"}
    folder = make_run(tmp_path, files={}, events=[STARTED, failed, ended])
    client, _ = browser(tmp_path)
    (folder / "logs").mkdir()
    log = folder / "logs" / "ingest.log"
    for written in ("", "A traceback.\n"):
        log.write_text(written)
        page = client.get("/runs/made").text
        assert ("/runs/made/log/ingest" in page) == bool(written)
    assert "failed before its rows were sorted" in client.get("/runs/made/data").text


def test_a_run_that_was_refused_before_its_diary_says_why(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    log = folder / LOG
    log.write_text(f"{BEGIN}1\nError: Old.\nOld hint.\n{BEGIN}2\nError: No disk.\nFree some.\n")
    assert last_words(folder) == ("No disk.", "Free some.")
    client, studio = browser(tmp_path)
    assert find_run(studio, "made").state == "failed"
    assert "Free some." in client.get("/runs/made").text
    log.write_text(f"{BEGIN}1\nError: Old.\n{BEGIN}2\nStopped.\n")
    assert last_words(folder) is None
    assert tail(log, 12) == "Stopped.\n"  # whole lines alone
    assert tail(folder / "none") == ""


def test_whoever_holds_a_folder_can_be_seen_without_its_lock(tmp_path: Path) -> None:
    import os

    assert holder(tmp_path) is None
    with claimed(tmp_path, "It"):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None
    # What a killed process left: its number may belong to another by now.
    left = {"process": os.getpid(), "mark": "0"}
    (tmp_path / ".process").write_text(json.dumps(left))
    assert holder(tmp_path) is None
    (tmp_path / ".process").write_text("{")
    assert holder(tmp_path) is None


def test_a_process_that_ended_is_gone_though_its_exit_code_was_not_fetched() -> None:
    import subprocess
    import sys
    import time

    process = subprocess.Popen([sys.executable, "-c", ""])
    for _ in range(200):
        if mark_of(process.pid) == GONE:
            break
        time.sleep(0.05)
    assert mark_of(process.pid) == GONE
    process.wait()
    assert mark_of(-1) == GONE


def test_memory_is_followed_a_point_a_second_and_a_long_run_stays_small(tmp_path: Path) -> None:
    held = [progress(n) | {"memory_bytes": 1e9 + n} for n in range(3)]
    diary = diary_of(tmp_path, STARTED, *held)
    assert diary.memory == [(1.0, 1e9), (2.0, 1e9 + 1), (3.0, 1e9 + 2)]
    assert any("GB held" in one for one in curves_of(diary))
    for second in range(20_000):
        diary._hold(4.0 + second / 2, float(second))
    assert 1000 < len(diary.memory) <= MOST_MEMORY
    assert diary.memory[-1][1] == pytest.approx(19_999, abs=8)
    assert max(held for _, held in diary.memory) == 1e9 + 2  # a peak is not thinned away
    again = diary_of(tmp_path, STARTED)
    assert again.memory == []


def test_a_finished_stage_is_offered_once_more_and_no_other(tmp_path: Path) -> None:
    make_run(tmp_path, events=[STARTED])
    client, studio = browser(tmp_path)
    assert "<option>curate</option>" in client.get("/runs/made").text
    started: list[str] = []
    studio.launcher.start = lambda folder, project, **more: started.append(more["again"])  # type: ignore[method-assign]
    for stage in ("curate", "distill", "../x"):
        client.post("/runs/made/again", data={"form": studio.form, "stage": stage})
    assert started == ["curate"]
