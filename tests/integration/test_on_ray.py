"""Stages whose work is done by Ray's workers: the artifacts of one process, though workers are
killed, and over a cluster's address, where no worker may look at the project's disk."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import vllm_stand_in
from mock_endpoint import Limits, MockEndpoint
from ray_processes import kill_one

from potstill import pipeline, sample
from potstill.core.events import read_events
from potstill.core.files import read_json
from potstill.core.processes import GONE, mark_of
from potstill.errors import UnavailableError
from potstill.recipe import Recipe

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(),
    reason="a Linux machine runs it, as CI is: workers are found as it shows them",
)
pytest.importorskip("ray", reason="an environment with the extra ray runs it, as CI's is")
SECRET = "sk-live-5e1f0c77a9"
AT_ONCE = 4
SHARED = ("ingest", "generate", "curate")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notes, one of them twice, and a file that cannot be read."""
    monkeypatch.setenv("GOOD_KEY", SECRET)
    text = sample.sample_path("handbook.md").read_text("utf-8")
    notes = tmp_path / "plain" / "notes"
    notes.mkdir(parents=True)
    for number in range(16):
        start = 400 * number
        (notes / f"{number:02}.md").write_text(f"# Note {number}\n\n{text[start : start + 1500]}")
    shutil.copy(notes / "00.md", notes / "again.md")
    (notes / "broken.pdf").write_bytes(b"%PDF-1.4 of no use")
    shutil.copytree(tmp_path / "plain", tmp_path / "spread")
    return tmp_path


def recipe(small: dict[str, Any], url: str) -> Recipe:
    endpoint = {"base_url": url, "keys": "GOOD_KEY", "concurrency": AT_ONCE}
    fake = {"teacher": "openai:big", "pairs_per_chunk": 3, "endpoint": endpoint}
    ingest = small["ingest"] | {"sources": ["notes"]}
    return Recipe.from_dict(small | {"ingest": ingest, "generate": fake})


def in_two_processes(small: dict[str, Any]) -> Recipe:
    """A few rows, and a training of two processes."""
    fake = {"backend": "fake", "pairs_per_chunk": 1}
    ingest = small["ingest"] | {"sources": ["notes/0[0-3].md"]}
    distill = small["distill"] | {"epochs": 1, "processes": 2}
    return Recipe.from_dict(small | {"ingest": ingest, "generate": fake, "distill": distill})


def digests(run: pipeline.Run) -> dict[str, str]:
    return {name: run.artifact(name).digest for name in SHARED}


def told(run: pipeline.Run, stage: str, kind: str) -> list[dict[str, Any]]:
    events = read_events(run.events)[0]
    return [one for one in events if (one["stage"], one["kind"]) == (stage, kind)]


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_the_same_artifacts_though_workers_are_killed(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    killed: dict[str, int] = {}

    def behave() -> None:
        """Kill a reader that has read something, then an engine that is being answered."""
        drafts = (project / "spread" / "store" / "ingest").glob("*.draft")
        parts = [part for draft in drafts for part in Path(draft, "work", "read").glob("*")]
        if "Reader" not in killed and len(parts) > 2 and (one := kill_one("Reader")):
            killed["Reader"] = one
        if "Engine" not in killed and server.count > 12 and (one := kill_one("Engine")):
            killed["Engine"] = one

    with MockEndpoint({SECRET: Limits(concurrency=AT_ONCE)}, delay=lambda n: 0.1) as server:
        this = recipe(small_recipe, server.url)
        spread = pipeline.run(
            this,
            project / "spread",
            until="curate",
            on="ray",
            workers=2,
            threads=1,
            pulse=behave,
        )
        asked = server.count
        distinct = {one.digest for one in server.seen}
        assert server.accounts[SECRET].broken["concurrency"] <= AT_ONCE  # those of the dead worker
        plain = pipeline.run(this, project / "plain", until="curate")
    assert digests(spread) == digests(plain)
    assert set(killed) == {"Reader", "Engine"}

    # Each file was read once but for the one that the dead reader had.
    (read,) = (one for one in told(spread, "ingest", "metric") if one["name"].startswith("files"))
    assert read["value"] == 17
    for warning in told(spread, "ingest", "warning"):
        assert "1 of their files were read again" in warning["message"]
    # Each request was sent once but for those that ran in the dead engine.
    assert asked - len(distinct) <= 2 * AT_ONCE
    assert any("A worker was lost" in one["message"] for one in told(spread, "generate", "warning"))
    for path in project.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_each_worker_has_a_vllm_of_its_own_which_ends_with_it(
    project: Path,
    small_recipe: dict[str, Any],
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = project / "vllm.jsonl"
    monkeypatch.setenv("POTSTILL_VLLM", str(vllm_stand_in.command_in(project)))
    monkeypatch.setenv("STAND_IN_NOTES", str(notes))
    monkeypatch.setenv("STAND_IN_SECONDS", "0.2")
    generate = {"teacher": str(tiny_folder), "backend": "vllm", "pairs_per_chunk": 3, "parallel": 2}
    ingest = small_recipe["ingest"] | {"sources": ["notes"]}
    this = Recipe.from_dict(small_recipe | {"ingest": ingest, "generate": generate})
    killed: list[int] = []

    def begun() -> list[int]:
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [json.loads(line)["process"] for line in lines]

    def behave() -> None:
        """Kill a worker as soon as both have begun."""
        if not killed and len(begun()) == 2 and (one := kill_one("Engine")):
            killed.append(one)

    spread = pipeline.run(
        this, project / "spread", until="curate", on="ray", workers=2, threads=1, pulse=behave
    )
    assert killed
    assert len(begun()) >= 3  # two, and one in the place of the dead worker's
    assert all(mark_of(one) == GONE for one in begun())
    plain = pipeline.run(this, project / "plain", until="curate")
    assert digests(spread) == digests(plain)


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_models_are_scored_by_workers_though_one_is_killed(
    project: Path, small_recipe: dict[str, Any]
) -> None:
    """The same answers and figures as of one process; only what the dead worker had is repeated."""
    fake = {"backend": "fake", "pairs_per_chunk": 2}
    ingest = small_recipe["ingest"] | {"sources": ["notes/0[0-5].md"]}
    evaluate = small_recipe["evaluate"] | {"batch_size": 1}
    this = Recipe.from_dict(
        small_recipe | {"ingest": ingest, "generate": fake, "evaluate": evaluate}
    )
    pipeline.run(this, project / "plain", until="distill")
    shutil.rmtree(project / "spread")
    shutil.copytree(project / "plain", project / "spread")
    killed: list[int] = []

    def behave() -> None:
        """Kill whoever scores a student, once the teacher is done."""
        drafts = (project / "spread" / "store" / "evaluate").glob("*.draft")
        parts = [part for draft in drafts for part in Path(draft, "work").glob("teacher-*.json")]
        if not killed and len(parts) == 2 and (one := kill_one("_score")):
            killed.append(one)

    spread = pipeline.run(
        this, project / "spread", until="evaluate", on="ray", workers=2, threads=1, pulse=behave
    )
    plain = pipeline.run(this, project / "plain", until="evaluate")
    assert killed
    found, expected = (
        [one.artifact("evaluate").path(name) for name in ("predictions.jsonl", "results.json")]
        for one in (spread, plain)
    )
    said, right_said = (
        [json.loads(line) for line in one[0].read_text().splitlines()] for one in (found, expected)
    )
    assert [row["answer"] for row in said] == [row["answer"] for row in right_said]
    figures, right = (read_json(one[1])["models"] for one in (found, expected))
    for name, model in right.items():
        for metric, figure in model["metrics"].items():
            assert figures[name]["metrics"][metric] == pytest.approx(figure, rel=1e-4, abs=1e-6)
    (parts,) = (one for one in told(spread, "evaluate", "metric") if one["name"] == "parts")
    assert parts["value"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_in_two_processes_is_rays(project: Path, small_recipe: dict[str, Any]) -> None:
    this = in_two_processes(small_recipe)
    pipeline.run(this, project / "plain", until="correct")
    run = pipeline.run(this, project / "plain", until="distill", on="ray", workers=2)
    metrics = {one["name"]: one["value"] for one in told(run, "distill", "metric")}
    assert metrics["processes"] == 2
    assert run.artifact("distill").path("models/distilled/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_and_an_evaluation_on_a_cluster_that_sees_the_files(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    this = in_two_processes(small_recipe)
    pipeline.run(this, project / "plain", until="correct")
    with cluster(project / "ray") as address:
        run = pipeline.run(
            this, project / "plain", until="evaluate", on=address, workers=2, shared=True
        )
    metrics = {one["name"]: one["value"] for one in told(run, "distill", "metric")}
    assert metrics["processes"] == 2
    assert not told(run, "distill", "warning")
    assert run.artifact("distill").path("models/distilled/model.safetensors").is_file()
    (parts,) = (one for one in told(run, "evaluate", "metric") if one["name"] == "parts")
    assert parts["value"] >= 1


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_a_cluster_behind_an_address(
    project: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    fake = {"backend": "fake", "pairs_per_chunk": 2}
    ingest = small_recipe["ingest"] | {"sources": ["notes"]}
    this = Recipe.from_dict(small_recipe | {"ingest": ingest, "generate": fake})
    with cluster(project / "ray") as address:
        spread = pipeline.run(this, project / "spread", until="generate", on=address)
    plain = pipeline.run(this, project / "plain", until="generate")
    for stage in ("ingest", "generate"):
        assert spread.artifact(stage).digest == plain.artifact(stage).digest
    with pytest.raises(UnavailableError, match="No Ray cluster answers"):
        pipeline.run(this, project / "spread", until="generate", on=address)


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A head of two cores on loopback, in processes that end with the block."""
    port, client = _free_ports(2)
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")),
            "start",
            *("--head", "--block", "--num-cpus=2", "--include-dashboard=false"),
            *("--node-ip-address=127.0.0.1", f"--port={port}"),
            f"--ray-client-server-port={client}",
            f"--object-store-memory={100 * 2**20}",
            f"--temp-dir={_short(folder)}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        start_new_session=True,
    )
    try:
        _wait_for(client, process)
        yield f"ray://127.0.0.1:{client}"
    finally:
        process.terminate()  # `--block` ends all that it began
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        shutil.rmtree(_short(folder), ignore_errors=True)


def _short(folder: Path) -> Path:
    """Ray's sockets lie in its folder, and a socket's path has at most 107 characters."""
    import tempfile

    return Path(tempfile.gettempdir()) / f"potstill-ray-{abs(hash(folder)) % 10**8}"


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the cluster did not begin"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the cluster does not answer")
