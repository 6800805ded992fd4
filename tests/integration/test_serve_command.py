"""`potstill serve`, `keys` and `feedback` from the command line, over a run with a tiny student."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from clean_environment import ROOT, make_environment
from studio_runs import browser

from potstill import pipeline, sample
from potstill.errors import ModelError, PotstillError, UsageError
from potstill.recipe import Recipe
from potstill.serve.address import address_of
from potstill.serve.gateway import ServeConfig
from potstill.serve.versions import Versions
from potstill.service import serve_run
from potstill.studio.launch import hear_interrupts

SECONDS = 90.0


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_teacher: Path,
    tiny_folder: Path,
    tiny_ggufs: dict[str, Path],
) -> Path:
    """The project of a run that has read its documents and exported a student."""
    project = tmp_path_factory.mktemp("project")
    text = sample.sample_path("handbook.md").read_text("utf-8")
    (project / "notes.md").write_text(text[:6000], "utf-8")
    recipe = {
        "name": "small",
        "teacher": str(tiny_teacher),
        "ingest": {"sources": ["notes.md"], "chunk_tokens": 160, "overlap_tokens": 0},
        "generate": {"backend": "fake"},
    }
    run = pipeline.run(Recipe.from_dict(recipe), project, until="ingest")
    (run.folder / "export" / "safetensors").mkdir(parents=True)
    shutil.copy(tiny_ggufs["q8_0"], run.folder / "export" / "student-q8_0.gguf")
    shutil.copy(tiny_folder / "tokenizer.json", run.folder / "export" / "safetensors")
    return project


@contextmanager
def serving(
    project: Path, *more: str, python: Path = Path(sys.executable)
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address."""
    command = [str(python), "-m", "potstill", "serve", "small", "--project", str(project)]
    command += ["--port", "0", "--threads", "1", "--parallel", "2", "--context", "512", *more]
    errors = project / "errors.txt"
    with errors.open("w") as stderr, subprocess.Popen(command, stderr=stderr, text=True) as process:
        try:
            end = time.monotonic() + SECONDS
            while "Serving small at " not in errors.read_text():
                assert process.poll() is None, errors.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            yield process, errors.read_text().split("Serving small at ")[1].split("/v1")[0]
        finally:
            process.kill()


def post(address: str, path: str, body: Any) -> httpx2.Response:
    return httpx2.post(f"{address}{path}", json=body, trust_env=False, timeout=SECONDS)


def engine_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    (found,) = [
        int(one)
        for one in children
        if b"engine_worker" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]
    return found


def test_a_run_is_served_corrected_and_stopped(finished: Path) -> None:
    project = ["--project", str(finished)]
    assert "no feedback yet" in potstill("feedback", "small", *project).stdout
    with serving(finished) as (process, address):
        asked = {
            "model": "small:documents",
            "messages": [{"role": "user", "content": "What is the island of the handbook?"}],
            "max_tokens": 4,
        }
        said = post(address, "/v1/chat/completions", asked).json()
        assert said["citations"][0]["source"] == "notes.md"
        fed = post(address, "/v1/feedback", {"response": said["id"], "correction": "The keeper."})
        assert fed.status_code == 200

        added = httpx2.post(
            f"{address}/v1/documents?name=ferry.html",
            content=b"<html><body><h1>Ferry</h1><p>The xylophone ferry leaves pier nine at half "
            b"past six on every Tuesday morning unless the north wind blows.</p></body></html>",
            headers={"Content-Type": "application/octet-stream"},
            trust_env=False,
            timeout=SECONDS,
        )
        assert added.json() | {"id": ""} == {
            "id": "", "object": "document", "name": "ferry.html", "passages": 1, "new": True,
        }  # fmt: skip
        asked["messages"] = [{"role": "user", "content": "When does the xylophone ferry leave?"}]
        found = post(address, "/v1/chat/completions", asked).json()["citations"][0]
        assert found["source"] == "ferry.html"
        assert "<p>" not in found["text"]
        broken = httpx2.post(
            f"{address}/v1/documents?name=broken.pdf",
            content=b"%PDF-1.7 and then nothing",
            headers={"Content-Type": "application/octet-stream"},
            trust_env=False,
            timeout=SECONDS,
        )
        assert broken.status_code == 400
        assert "broken.pdf cannot be used" in broken.json()["error"]["message"]

        second = potstill("serve", "small", "--port", "0", *project)
        assert second.returncode == 5
        assert "is already running in another process" in second.stderr

        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    listed = potstill("feedback", "small", *project)
    assert "The keeper." in listed.stdout
    (row,) = json.loads(potstill("feedback", "small", "--json", *project).stdout)
    assert row["response"] == said["id"]
    assert row["citations"] == said["citations"]


def test_a_kill_takes_the_engine_along_and_the_service_starts_again(finished: Path) -> None:
    with serving(finished) as (process, _):
        engine = engine_of(process.pid)
        process.kill()
        process.wait()
        end = time.monotonic() + SECONDS
        while Path(f"/proc/{engine}").exists():
            state = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                break
            assert time.monotonic() < end
            time.sleep(0.05)
    with serving(finished) as (process, address):
        assert httpx2.get(f"{address}/ready", trust_env=False).status_code == 200


def test_keys_from_the_command_line(finished: Path) -> None:
    project = ["--project", str(finished)]
    made = potstill("keys", "add", "alice", "--requests-per-minute", "3", *project)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    try:
        assert potstill("keys", "add", "alice", *project).returncode == 2
        listed = potstill("keys", "list", "--json", *project)
        (row,) = json.loads(listed.stdout)
        assert (row["name"], row["limits"]["requests_per_minute"]) == ("alice", 3)
        assert key not in listed.stdout
        assert "alice" in potstill("keys", "list", *project).stdout
        with (
            serving(finished, "--host", "0.0.0.0") as (_, address),
            openai.OpenAI(
                base_url=f"{address.replace('0.0.0.0', '127.0.0.1')}/v1",
                api_key=key,
                max_retries=0,
            ) as client,
        ):
            assert client.models.list().data[0].id == "small"
            assert potstill("keys", "revoke", "alice", *project).returncode == 0
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
    finally:
        (finished / "keys.json").unlink()
    assert potstill("keys", "revoke", "alice", *project).returncode == 2


def test_mistakes_are_one_line_before_anything_is_loaded(finished: Path) -> None:
    run = pipeline.open_run("small", finished)
    damaged = run.folder / "export" / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + os.urandom(2000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mistakes: list[tuple[dict[str, Any], dict[str, Any], type[PotstillError], str]] = [
            ({"port": port}, {}, UsageError, "Cannot listen at 127.0.0.1"),
            ({"host": "0.0.0.0"}, {}, UsageError, "needs an API key"),
            ({"host": "no.such.host.invalid"}, {}, UsageError, "needs an API key"),
            ({}, {"keys": finished / "none.json"}, UsageError, "holds no live key"),
            ({}, {"file": "other"}, UsageError, "has no exported file other"),
            ({}, {"engine": "nonsense"}, UsageError, "is no address"),
            ({}, {"engine": "http://127.0.0.1:9"}, ModelError, "No engine answers"),
            ({}, {"file": "damaged"}, ModelError, "llama.cpp cannot serve"),
        ]
        try:
            for settings, options, kind, words in mistakes:
                with pytest.raises(kind, match=words):
                    serve_run(run, ServeConfig(**({"port": 0} | settings)), **options)
        finally:
            damaged.unlink()
    done = potstill("serve", "small", "--queue-seconds", "-1", "--project", str(finished))
    assert done.returncode == 2
    assert "queue_seconds" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_a_candidate_beside_the_run_is_compared_promoted_and_taken_back(finished: Path) -> None:
    run, project = finished / "runs" / "small", ["--project", str(finished)]
    shutil.copytree(run, finished / "runs" / "small-2", ignore=shutil.ignore_patterns("serve"))
    versions = Versions(run / "serve", "small")
    asked = {
        "model": "small",
        "messages": [{"role": "user", "content": "How many litres?"}],
        "max_tokens": 2,
    }
    try:
        for words, mistake in (
            (("--candidate", "small-2", "--share", "2"), "has to lie between 0 and 1"),
            (("--candidate", "small"), "serves already"),
            (("--candidate", "small-2", "--assign", "lot"), "There is no --assign lot"),
            (("--candidate", "small-2", "--engine", "http://127.0.0.1:9"), "exclude each other"),
        ):
            refused = potstill("serve", "small", *words, *project)
            assert (refused.returncode, mistake in refused.stderr) == (2, True), refused.stderr
        share = ("--candidate", "small-2", "--share", "0.5", "--assign", "request")
        with serving(finished, *share) as (process, address):

            def variant() -> str:
                said = post(address, "/v1/chat/completions", asked)
                assert said.status_code == 200
                return str(said.headers["x-variant"])

            assert {variant() for _ in range(16)} == {"small", "small-2"}
            found = json.loads(potstill("ab", "small", "--json", *project).stdout)
            assert sum(found["requests"].values()) == 16
            assert found["said"][0].startswith("Nothing can be told yet")
            table = potstill("ab", "small", *project)
            assert "first token" in table.stdout, table.stderr
            versions.promote("small-2", "student-q8_0.gguf", "k", force=True)
            end = time.monotonic() + SECONDS
            while {variant() for _ in range(4)} != {"small-2"}:
                assert time.monotonic() < end
            back = potstill("rollback", "small", *project)
            assert "small is served by small again" in back.stderr
            while variant() != "small":
                assert time.monotonic() < end + SECONDS
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        none = potstill("ab", "small", "other", *project)
        assert (none.returncode, "The candidate other has got no share" in none.stderr) == (3, True)
    finally:
        versions.path.unlink(missing_ok=True)
        shutil.rmtree(finished / "runs" / "small-2")


@pytest.mark.whole
def test_the_serving_extras_suffice_wherever_the_project_is(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the serving image: what these extras bring and no torch, and the project mounted at
    another place than where the run was made."""
    python = make_environment(tmp_path / "environment", ("serve", "llamacpp"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    for absent in ("torch", "transformers"):
        command = [str(python), "-c", f"import {absent}"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    moved = finished.rename(tmp_path / "project")
    try:
        for words in ("feedback", "versions", "drift", "verify"):
            command = [str(python), "-m", "potstill", words, "small", "--project", str(moved)]
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        with serving(moved, python=python) as (_, address):
            asked = [{"role": "user", "content": "When is the kiln opened?"}]
            for model in ("small", "small:documents"):
                body = {"model": model, "messages": asked, "max_tokens": 4}
                assert post(address, "/v1/chat/completions", body).status_code == 200
            assert "potstill_ready 1" in httpx2.get(f"{address}/metrics", trust_env=False).text
            assert httpx2.get(f"{address}/drift", trust_env=False).status_code == 200
    finally:
        moved.rename(finished)


def test_the_studio_starts_it_and_stops_it(finished: Path) -> None:
    hear_interrupts()
    client, studio = browser(finished)
    folder = finished / "runs" / "small" / "serve"

    def post(**fields: str) -> int:
        fields["form"] = studio.form
        path = "/runs/small/service"
        return client.post(path, data=fields, follow_redirects=False).status_code

    def until(true: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, (folder / "service.log").read_text()
            time.sleep(0.1)

    assert post(action="serve", port="0") == 303
    try:
        until(lambda: address_of(folder))
        address = address_of(folder)
        assert httpx2.get(f"{address}/ready", trust_env=False).status_code == 200
        assert post(action="serve", port="0") == 303  # nothing: it runs already
        assert address_of(folder) == address
    finally:
        assert post(action="stop") == 303
    until(lambda: not studio.launcher.running(folder))
    assert address_of(folder) == ""
    assert (folder / "service.log").read_text().count(f"Serving small at {address}/v1") == 1
