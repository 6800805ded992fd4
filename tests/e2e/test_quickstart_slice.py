"""The real embedded teacher on a slice of the handbook, from the command line to the chat."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.sample import sample_path

ROOT = Path(__file__).parent.parent.parent
DOCS, TOOL = ROOT / "docs", ROOT / "tools" / "make_pictures.py"
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the run, from its command."""
    folder = tmp_path_factory.mktemp("slice")
    text = sample_path("handbook.md").read_text("utf-8")
    (folder / "notes.md").write_text(text[:7000], "utf-8")
    options = [word for one in SLICE for word in ("--set", one)]
    done = potstill("run", "quickstart", *options, "--project", str(folder))
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return folder


@pytest.mark.slow
def test_a_slice_of_the_quickstart_ends_in_a_student_that_chats(finished: Path) -> None:
    project = ["--project", str(finished)]
    report = json.loads((finished / "runs" / "quickstart" / "report.json").read_text())
    models = report["models"]
    assert models["distilled"]["parameters"] <= 0.75 * models["teacher"]["parameters"]
    assert {"gguf-f16", "gguf-q4_k_m"} <= set(models)

    said = potstill("chat", "quickstart", "Who is the station warden?", *project)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert "notes.md" in said.stderr
    assert potstill("verify", "quickstart", *project).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("chromium"), reason="a machine with chromium runs it, as CI is"
)
def test_a_picture_of_each_page_can_be_taken(finished: Path, tmp_path: Path) -> None:
    """As those of the docs are: each page is opened, asked what a picture needs, and drawn."""
    from PIL import Image

    tool = [sys.executable, str(TOOL), str(finished), "--into", str(tmp_path)]
    subprocess.run(tool, check=True, timeout=900)
    shown = set(DOCS.rglob("*.md")) | {DOCS.parent / "README.md"}
    wanted = {
        name
        for page in shown
        for name in re.findall(r"pictures/([\w-]+\.png)", page.read_text("utf-8"))
    }
    taken = {one.name for one in tmp_path.glob("*.png")}
    assert wanted - taken == {"studio-compare.png"}  # of two runs
    for name in taken:
        with Image.open(tmp_path / name) as picture:
            colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert len(colours) > 100, name  # an empty page has its two or three
