"""The stage machinery with two small stages in real processes: reuse, resume, kill, damage."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.core.events import read_events
from potstill.core.runner import PlannedStep, Runner, Step
from potstill.core.store import Store
from potstill.errors import InputError, MissingExtraError, PotstillError, StoreError

COUNT = """
    from potstill.core.stage import Stage, StageConfig

    class Config(StageConfig):
        rows: int = 5
        pause: float = 0.0
        foreseen: float = 100.0
        fail: str = ""

    def estimate(config, earlier, project):
        return {"rows": config.rows, "seconds": config.foreseen * config.rows}

    def counts(data):
        return {"rows": len((data / "rows.txt").read_text().splitlines())}

    STAGE = Stage("count", 1, Config, (), "toy_count.run:run", estimate=estimate, counts=counts)
"""
COUNT_RUN = """
    import os, time
    from potstill.errors import InputError

    def run(config, inputs, draft, context):
        notes = draft.work / "notes"
        done = len(notes.read_text().splitlines()) if notes.exists() else 0
        for row in range(done, config.rows):
            time.sleep(config.pause)
            with notes.open("a") as file:
                file.write(f"{row}\\n")
            context.events.progress(row + 1, config.rows, "rows")
        if config.fail == "input":
            raise InputError("The file a.pdf is empty.", "Replace it.")
        if config.fail == "package":
            raise ModuleNotFoundError("No module named 'docx'", name="docx.oxml")
        if config.fail == "bug":
            raise KeyError("surprise")
        if config.fail == "torch":
            import torch
            torch.save(torch.ones(100_000), "/dev/full")
        if config.fail == "crash":
            os.abort()
        if config.fail == "disk":
            with open("/dev/full", "w") as file:
                file.write("x" * 100000)
        (draft.data / "rows.txt").write_text(notes.read_text())
"""
DOUBLE = """
    from potstill.core.stage import Stage, StageConfig

    class Config(StageConfig):
        times: int = 2

    def estimate(config, earlier, project):
        return {"rows": config.times * earlier["count"]["rows"]}

    STAGE = Stage("double", 1, Config, ("count",), "toy_double.run:run", estimate=estimate)
"""
DOUBLE_RUN = """
    def run(config, inputs, draft, context):
        text = inputs["count"].path("rows.txt").read_text()
        (draft.data / "out.txt").write_text(text * config.times)
"""
DRIVER = """
    import sys
    from pathlib import Path
    import toy_count
    from potstill.core.runner import PlannedStep, Runner, Step
    from potstill.core.store import Store
    root = Path(sys.argv[1])
    config = toy_count.Config(rows=int(sys.argv[2]), pause=float(sys.argv[3]))
    Runner(Store(root / "store"), root, 1, 1).run(
        [Step(toy_count.STAGE, config)], root / "events.jsonl", root / "logs",
        lambda event: None, lambda artifact, reused: None)
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    code = {"toy_count": (COUNT, COUNT_RUN), "toy_double": (DOUBLE, DOUBLE_RUN)}
    for package, (init, run) in code.items():
        folder = tmp_path / "code" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(textwrap.dedent(init))
        (folder / "run.py").write_text(textwrap.dedent(run))
    (tmp_path / "code" / "driver.py").write_text(textwrap.dedent(DRIVER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path
    for package in code:
        sys.modules.pop(package, None)


def run(root: Path, **fields: object) -> tuple[dict[str, bool], Path]:
    import toy_count  # type: ignore[import-not-found]
    import toy_double  # type: ignore[import-not-found]

    reused: dict[str, bool] = {}
    runner = Runner(Store(root / "store"), root, seed=1, threads=1)
    steps = [
        Step(toy_count.STAGE, toy_count.Config(**fields)),
        Step(toy_double.STAGE, toy_double.Config()),
    ]
    done = runner.run(
        steps,
        root / "events.jsonl",
        root / "logs",
        lambda event: None,
        lambda artifact, was: reused.update({artifact.stage: was}),
    )
    return reused, done["double"].path("out.txt")


def test_finished_stages_are_reused_and_changed_ones_run(toys: Path) -> None:
    assert run(toys)[0] == {"count": False, "double": False}
    reused, out = run(toys)
    assert reused == {"count": True, "double": True}
    assert out.read_text() == "0\n1\n2\n3\n4\n" * 2
    assert run(toys, rows=6)[0] == {"count": False, "double": False}


def test_a_stage_whose_inputs_have_the_same_content_is_reused(toys: Path) -> None:
    run(toys)
    assert run(toys, pause=0.001)[0] == {"count": False, "double": True}


def test_the_plan_names_the_changed_field_and_starts_nothing(toys: Path) -> None:
    import toy_count
    import toy_double

    run(toys)
    runner = Runner(Store(toys / "store"), toys, seed=1, threads=1)
    before = sorted(toys.rglob("*"))
    steps = [
        Step(toy_count.STAGE, toy_count.Config(rows=9)),
        Step(toy_double.STAGE, toy_double.Config()),
    ]
    first, second = runner.plan(steps)
    assert (first.action, first.reason) == ("run", "changed: rows")
    assert (second.action, second.reason) == ("wait", "after count")
    assert sorted(toys.rglob("*")) == before


def test_the_plan_reckons_with_what_is_there_and_with_what_stages_took_here(toys: Path) -> None:
    import toy_count
    import toy_double

    runner = Runner(Store(toys / "store"), toys, seed=1, threads=1)

    def plan(rows: int, times: int, **more: float) -> list[PlannedStep]:
        count = Step(toy_count.STAGE, toy_count.Config(rows=rows, **more))
        return runner.plan([count, Step(toy_double.STAGE, toy_double.Config(times=times))])

    fresh = plan(rows=5, times=2)
    assert [step.estimate for step in fresh] == [{"rows": 5, "seconds": 500.0}, {"rows": 10}]
    run(toys, rows=5)
    assert [step.estimate for step in plan(rows=5, times=2)] == [{}, {}]
    assert plan(rows=5, times=3)[1].estimate == {"rows": 15}
    # Five rows took next to nothing of the 500 seconds foreseen: corrected, within reason.
    assert plan(rows=10, times=2)[0].estimate["seconds"] == pytest.approx(1000 / 4)
    # With 0.2 seconds a row foreseen and 0.1 taken, ten rows will take what twice five took.
    run(toys, rows=5, pause=0.1, foreseen=0.2)
    took = runner.store.newest_manifest("count", undisturbed=True)
    assert took is not None
    again = plan(rows=10, times=2, pause=0.1, foreseen=0.2)
    assert again[0].estimate["seconds"] == pytest.approx(2 * took["seconds"])


def test_what_a_later_stage_cannot_read_is_told_before_the_first_one_runs(toys: Path) -> None:
    import toy_count
    import toy_double

    def no_model(config: Any, project: Path) -> dict[str, str]:
        raise InputError("There is no model.", "Name one.")

    blind = dataclasses.replace(toy_double.STAGE, facts=no_model)
    runner = Runner(Store(toys / "store"), toys, seed=1, threads=1)
    steps = [Step(toy_count.STAGE, toy_count.Config()), Step(blind, toy_double.Config())]
    events = toys / "events.jsonl"
    with pytest.raises(InputError, match="There is no model"):
        runner.run(steps, events, toys / "logs", lambda event: None, lambda artifact, was: None)
    assert not events.exists()


def test_an_estimate_that_fails_stops_neither_plan_nor_run(toys: Path) -> None:
    import toy_count

    runner = Runner(Store(toys / "store"), toys, seed=1, threads=1)
    broken = dataclasses.replace(toy_count.STAGE, estimate=lambda *_: {"rows": 1 / 0})
    step = Step(broken, toy_count.Config())
    assert runner.plan([step])[0].estimate == {}
    folders = toys / "events.jsonl", toys / "logs"
    done = runner.run([step], *folders, lambda event: None, lambda artifact, was: None)
    assert done["count"].path("rows.txt").exists()


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        ("input", InputError, "a.pdf is empty. Replace it."),
        ("package", MissingExtraError, "python-docx, which is not installed. Install it with: pip"),
        ("bug", PotstillError, "nobody foresaw: KeyError: 'surprise'"),
        ("crash", PotstillError, "was killed by signal 6"),
    ],
)
def test_each_failure_is_one_error_and_leaves_the_finished_rows(
    toys: Path, fail: str, kind: type[PotstillError], words: str
) -> None:
    assert_one_error(toys, fail, kind, words)


@pytest.mark.parametrize("fail", ["disk", "torch"])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_error_and_leaves_the_finished_rows(toys: Path, fail: str) -> None:
    assert_one_error(toys, fail, StoreError, "No space left on device. Free some disk space")


def assert_one_error(toys: Path, fail: str, kind: type[PotstillError], words: str) -> None:
    with pytest.raises(kind) as caught:
        run(toys, fail=fail)
    assert words in str(caught.value)
    (draft,) = (toys / "store" / "count").glob("*.draft")
    assert (draft / "work" / "notes").read_text() == "0\n1\n2\n3\n4\n"
    assert run(toys)[0] == {"count": False, "double": False}


def test_a_disk_too_full_for_the_log_does_not_hide_the_error(toys: Path, full_disk: Path) -> None:
    (toys / "logs").mkdir()
    (toys / "logs" / "count.log").symlink_to(full_disk)
    with pytest.raises(PotstillError, match="nobody foresaw: KeyError: 'surprise'"):
        run(toys, fail="bug")


@pytest.mark.timeout(60)
def test_ctrl_c_while_a_stage_is_started_neither_hangs_nor_leaves_a_child(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            started.append(self)

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr("potstill.core.runner.subprocess.Popen", Noted)
    monkeypatch.setattr("potstill.core.runner.threading.Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(toys)
    assert [process.poll() is not None for process in started] == [True]


def test_a_damaged_input_stops_the_next_stage_with_its_name(toys: Path) -> None:
    run(toys)
    (rows,) = (toys / "store" / "count").glob("*/data/rows.txt")
    rows.write_text("9\n1\n2\n3\n4\n")  # as long as before: only its hash tells
    shutil.rmtree(toys / "store" / "double")
    with pytest.raises(StoreError, match=r"rows\.txt has changed since it was written"):
        run(toys)


@pytest.mark.parametrize("moment", [0.15, 0.6, 0.9, 1.2])
def test_a_killed_run_goes_on_and_no_child_outlives_it(toys: Path, moment: float) -> None:
    command = [sys.executable, str(toys / "code" / "driver.py"), str(toys), "40", "0.03"]
    process = subprocess.Popen(command, env=os.environ.copy())
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=os.environ.copy(), check=False, timeout=60)
    assert done.returncode == 0
    (rows,) = (toys / "store" / "count").glob("*/data/rows.txt")
    assert rows.read_text() == "".join(f"{row}\n" for row in range(40))


def test_events_tell_the_whole_story(toys: Path) -> None:
    run(toys)
    events, _ = read_events(toys / "events.jsonl")
    told = [(event["stage"], event["kind"]) for event in events]
    assert told[0] == ("count", "started")
    assert ("count", "finished") in told
    assert told[-1] == ("double", "finished")
    assert json.dumps(events)


def test_a_pulse_that_raises_stops_the_stage_and_its_draft_can_be_gone_on_with_or_deleted(
    toys: Path,
) -> None:
    import toy_count

    config = toy_count.Config(rows=400, pause=0.03)
    notes = toys / "store" / "count"

    def pulse() -> None:
        if any(notes.glob("*.draft/*/notes")):
            raise TimeoutError

    runner = Runner(Store(toys / "store"), toys, seed=1, threads=1, pulse=pulse)
    with pytest.raises(TimeoutError):
        runner.run(
            [Step(toy_count.STAGE, config)],
            toys / "events.jsonl",
            toys / "logs",
            lambda event: None,
            lambda artifact, was: None,
        )
    (draft,) = notes.glob("*.draft")
    written = (draft / "work" / "notes").read_text()
    assert len(written.splitlines()) < 400
    time.sleep(0.2)
    assert (draft / "work" / "notes").read_text() == written  # nobody writes on
    store = Store(toys / "store")
    assert runner.plan([Step(toy_count.STAGE, config)])[0].action == "resume"
    store.discard_draft("count", draft.stem)
    store.discard_draft("count", draft.stem)  # what is gone already is no error
    assert not store.has_draft("count", draft.stem)
    assert runner.plan([Step(toy_count.STAGE, config)])[0].action == "run"
