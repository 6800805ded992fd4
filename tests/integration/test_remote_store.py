"""Runs whose results are mirrored: another machine goes on, and trouble there harms none here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill import pipeline
from potstill.core.events import read_events
from potstill.core.remote import RemoteStore
from potstill.core.runner import Runner, Step
from potstill.core.store import Store
from potstill.errors import StoreError, UsageError
from potstill.recipe import Recipe

STEP = """
    from potstill.core.stage import Stage, StageConfig

    class Config(StageConfig):
        steps: int = 3
        fail: bool = False
        not_in_key = frozenset({"fail"})

    STAGE = Stage("train", 1, Config, (), "toy_steps.run:run")
"""
STEP_RUN = """
    from potstill.core.files import mark_whole
    from potstill.errors import InputError

    def run(config, inputs, draft, context):
        made = sorted(draft.work.glob("checkpoint-*"))
        first = len(made)
        for number in range(first, config.steps):
            folder = draft.work / f"checkpoint-{number}"
            folder.mkdir()
            (folder / "weights").write_text(str(number))
            mark_whole(folder)
            if config.fail and number == 1:
                raise InputError("The machine is taken away.")
        (draft.data / "weights").write_text("".join(
            (draft.work / f"checkpoint-{number}" / "weights").read_text()
            for number in range(config.steps)))
        (draft.data / "first").write_text(str(first))
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "code" / "toy_steps"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(textwrap.dedent(STEP))
    (folder / "run.py").write_text(textwrap.dedent(STEP_RUN))
    paths = [str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path
    sys.modules.pop("toy_steps", None)


def run(
    root: Path,
    remote: RemoteStore | None,
    seen: list[dict[str, Any]] | None = None,
    anew: frozenset[str] = frozenset(),
    **more: Any,
) -> tuple[Path, bool]:
    """A run in a project of its own, as on a machine of its own: its result, whether it was there
    before."""
    import toy_steps  # type: ignore[import-not-found]

    root.mkdir(exist_ok=True)
    reused: list[bool] = []
    runner = Runner(Store(root / "store"), root, 1, 1, remote=remote, anew=anew)
    done = runner.run(
        [Step(toy_steps.STAGE, toy_steps.Config(**more))],
        root / "events.jsonl",
        root / "logs",
        (seen if seen is not None else []).append,
        lambda artifact, was: reused.append(was),
    )
    return done["train"].folder / "data", reused[0]


@pytest.fixture
def remote(tmp_path: Path) -> RemoteStore:
    return RemoteStore(f"memory://{uuid.uuid4().hex}/project")


def test_a_second_machine_finds_what_the_first_one_finished(
    toys: Path, remote: RemoteStore
) -> None:
    import toy_steps

    one, was = run(toys / "one", remote)
    assert not was
    step = Step(toy_steps.STAGE, toy_steps.Config())
    planned = Runner(Store(toys / "two" / "store"), toys, 1, 1, remote=remote).plan([step])
    assert (planned[0].action, planned[0].reason) == ("reuse", f"is in {remote.address}")
    assert not (toys / "two").exists()
    seen: list[dict[str, Any]] = []
    two, was = run(toys / "two", remote, seen)
    assert was
    assert (two / "weights").read_bytes() == (one / "weights").read_bytes()
    assert {event["kind"] for event in seen} == {"progress", "skipped"}
    (skipped,) = (event for event in seen if event["kind"] == "skipped")
    assert skipped["reason"] == f"was in {remote.address}"
    assert not remote.files.exists(remote.place("train", f"{one.parent.name}.draft"))


def test_a_stage_that_is_to_run_once_more_is_not_fetched(toys: Path, remote: RemoteStore) -> None:
    run(toys / "one", remote)
    _, was = run(toys / "two", remote, anew=frozenset({"train"}))
    assert not was


def test_another_machine_goes_on_from_the_last_whole_checkpoint(
    toys: Path, remote: RemoteStore
) -> None:
    from potstill.errors import InputError

    with pytest.raises(InputError, match="taken away"):
        run(toys / "one", remote, fail=True)
    data, _ = run(toys / "two", remote)
    assert (data / "first").read_text() == "2"
    assert (data / "weights").read_text() == "012"


def test_an_upload_that_fails_keeps_the_result_here_and_is_made_up_for(
    toys: Path, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    seen: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(remote.files, "put_file", refuse, raising=False)
        with pytest.raises(StoreError, match="access was refused"):
            run(toys / "one", remote, seen)
    warned = [event["message"] for event in seen if event["kind"] == "warning"]
    assert len(warned) == 1
    assert "not in the remote store yet" in warned[0]
    data, was = run(toys / "one", remote)  # the local result is used, and brought now
    assert was
    assert remote.manifest("train", data.parent.name) is not None


def test_the_store_is_named_by_option_environment_or_recipe_in_that_order(
    tmp_path: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(small_recipe | {"store": "memory://recipe/x"})

    def named(option: str | None = None) -> tuple[str, str]:
        runner = pipeline._runner(recipe, tmp_path, 1, store=option)
        return str(runner.store.root), runner.remote.address if runner.remote else ""

    inside = str(tmp_path / "store")
    assert named() == (inside, "memory://recipe/x")
    monkeypatch.setenv("POTSTILL_STORE", "memory://environment/x")
    assert named() == (inside, "memory://environment/x")
    assert named("memory://option/x") == (inside, "memory://option/x")
    assert named(str(tmp_path / "other")) == (str(tmp_path / "other"), "")
    with pytest.raises(UsageError, match="an address such as s3"):
        Recipe.from_dict(small_recipe | {"store": "some/folder"})
    with pytest.raises(UsageError, match="holds credentials") as raised:
        named("s3://me:hidden@bucket/x")
    assert "hidden" not in str(raised.value)


@pytest.mark.whole
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_goes_on_on_another_machine(
    tmp_path: Path, small_recipe: dict[str, Any]
) -> None:
    """SIGKILL after the first checkpoint reached the store; nothing of the first machine is left
    but that, and the second one does not begin again."""
    from potstill.sample import sample_path

    text = sample_path("handbook.md").read_text("utf-8")[:6000]
    there = tmp_path / "there"
    distill = small_recipe["distill"] | {
        "epochs": 2,
        "patience": 0,
        "checkpoint_minutes": 0.005,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe | {"distill": distill}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POTSTILL_MIRROR_SECONDS": "0.2"}

    def start(name: str) -> subprocess.Popen[bytes]:
        project = tmp_path / name
        project.mkdir()
        (project / "notes.md").write_text(text, "utf-8")
        command = [sys.executable, "-m", "potstill", "run", str(tmp_path / "recipe.yaml")]
        command += ["--until", "distill", "--store", f"file://{there}", "--project", str(project)]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    first = start("one")
    index = "distill/*.draft/index.json"
    deadline = time.monotonic() + 400
    while not list(there.glob(index)) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list(there.glob(index)), "no checkpoint reached the store before the training ended"
    assert not list(there.glob("distill/*/manifest.json"))
    second = start("two")
    assert second.wait(timeout=450) == 0
    events, _ = read_events(tmp_path / "two" / "runs" / "small" / "events.jsonl")
    skipped = {event["stage"] for event in events if event["kind"] == "skipped"}
    assert skipped >= {"ingest", "generate", "curate", "correct"}
    started = [event for event in events if event["kind"] == "started"]
    assert [(event["stage"], event["resumed"]) for event in started] == [("distill", True)]
    steps = [
        event["step"]
        for event in events
        if event["kind"] == "metric" and event["name"] == "loss" and event["step"]
    ]
    assert steps[0] > 1  # the first training goes on where the checkpoint was
    assert list(there.glob("distill/*/manifest.json"))
    assert not list(there.glob(index))
