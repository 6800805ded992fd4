"""The real embedded teacher on a slice of the handbook, from the command line to the chat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.sample import sample_path

SLICE = (
    "ingest.sources=[notes.md]",
    "generate.pairs_per_chunk=3",
    "distill.student.method=influence",
    "distill.student.calibration_tokens=128",
    "distill.max_tokens=8000",
    "distill.step_tokens=500",
    "distill.validations=1",
    "evaluate.max_examples=3",
    "evaluate.speed_rounds=1",
    "export.max_examples=2",
    "export.speed_rounds=1",
)


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)


@pytest.mark.slow
def test_a_slice_of_the_quickstart_ends_in_a_student_that_chats(tmp_path: Path) -> None:
    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:7000], "utf-8")
    options = [word for one in SLICE for word in ("--set", one)]
    project = ["--project", str(tmp_path)]

    done = potstill("run", "quickstart", *options, *project)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    report = json.loads((tmp_path / "runs" / "quickstart" / "report.json").read_text())
    models = report["models"]
    assert models["distilled"]["parameters"] <= 0.75 * models["teacher"]["parameters"]
    assert {"gguf-f16", "gguf-q4_k_m"} <= set(models)

    said = potstill("chat", "quickstart", "Who is the station warden?", *project)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert "notes.md" in said.stderr
    assert potstill("verify", "quickstart", *project).returncode == 0
