"""A run that the studio starts is a process of its own: stopped, gone on with, refused in words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from starlette.testclient import TestClient
from studio_runs import browser

from potstill.core.claims import holder
from potstill.core.processes import GONE, mark_of
from potstill.sample import sample_path
from potstill.studio.launch import hear_interrupts
from potstill.studio.runs import find_run
from potstill.studio.session import Studio


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[TestClient, Studio]]:
    """A studio over a project with one text; what it started is ended with the test."""
    hear_interrupts()
    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    client, studio = browser(tmp_path)
    yield client, studio
    for folder in (tmp_path / "runs").glob("*"):
        process = holder(folder)
        if process is not None:
            os.kill(process, signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)


def post(client: TestClient, studio: Studio, path: str, **fields: str) -> int:
    answer = client.post(path, data={"form": studio.form, **fields}, follow_redirects=False)
    return answer.status_code


def test_a_run_is_started_stopped_and_goes_on_whatever_becomes_of_the_studio(
    opened: tuple[TestClient, Studio], small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    client, studio = opened
    assert post(client, studio, "/runs", yaml=yaml.safe_dump(small_recipe)) == 303
    folder = tmp_path / "runs" / "small"
    until(lambda: find_run(studio, "small").state == "running")
    process = holder(folder)
    assert process is not None
    assert os.getsid(process) == process  # Ctrl-C in the studio's terminal is not for it

    _, later = browser(tmp_path)  # another studio, as after a restart, finds it at work
    assert find_run(later, "small").state == "running"
    later.launcher.start(folder, tmp_path)  # and starts no second one
    assert holder(folder) == process

    assert "Stop</button>" in client.get("/runs/small").text
    later.launcher.stop(folder)
    assert find_run(later, "small").state in ("stopping", "stopped")
    until(lambda: mark_of(process) == GONE)
    assert find_run(studio, "small").state == "stopped"
    assert "Stopped. The same command goes on from here." in (folder / "run.log").read_text()

    assert post(client, studio, "/runs/small/resume") == 303
    until(lambda: find_run(studio, "small").state == "running")
    again = holder(folder)
    assert again not in (None, process)
    assert post(client, studio, "/runs/small/stop") == 303
    until(lambda: not find_run(studio, "small").live)


def test_the_command_opens_it_at_its_address_and_ctrl_c_closes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "potstill", "studio", "--no-browser"]
    command += ["--project", str(tmp_path), "--port"]
    process = subprocess.Popen(
        [*command, "0"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", process.stderr.readline())
        assert found
        with httpx2.Client(follow_redirects=True, trust_env=False, timeout=60) as client:
            assert "Try the sample" in client.get(found[0]).text
        taken = subprocess.run([*command, found[1]], capture_output=True, text=True, check=False)
        assert taken.returncode == 2
        assert "choose another --port" in taken.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    nowhere = [*command, "0", "--project", str(tmp_path / "nowhere")]
    refused = subprocess.run(nowhere, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr


def test_a_run_that_cannot_begin_says_why_on_its_page(
    opened: tuple[TestClient, Studio], small_recipe: dict[str, Any]
) -> None:
    client, studio = opened
    lost = small_recipe | {"ingest": {"sources": ["nowhere.pdf"]}}
    assert post(client, studio, "/runs", yaml=yaml.safe_dump(lost)) == 303
    until(lambda: find_run(studio, "small").state == "failed")
    page = client.get("/runs/small").text
    assert "&#39;nowhere.pdf&#39; (ingest.sources) does not exist" in page
    assert "Go on</button>" in page
    with client.stream("GET", "/runs/small/live") as live:  # ends by itself, as the run did
        said = "".join(live.iter_text())
    assert '"over": true' in said
    assert "nowhere.pdf" in said
