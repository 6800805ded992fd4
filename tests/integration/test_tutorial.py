"""docs/tutorial.md, typed into one shell from its first command to its last.

Two things differ from what a reader types: the recipe is cut short where the page says so, and the
service's port is a free one. What the page shows below a command must have the shape of what came.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import doc_commands
import pytest
import yaml

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
MARK = "=== block {} ==="
CUT = "in the tests the recipe is cut short here"
NOT_RUN = "<!-- not run"
REAL = {
    "generate": {"pairs_per_chunk": 3},
    "distill": {
        "student": {"fit_tokens": 1024, "calibration_tokens": 128},
        "max_tokens": 8000,
        "step_tokens": 500,
        "validations": 1,
    },
    "evaluate": {"max_examples": 3, "speed_rounds": 1},
    "export": {"max_examples": 2, "speed_rounds": 1},
}
"""What makes the real teacher's run take minutes."""


def steps() -> tuple[list[str], dict[int, str]]:
    """The shell blocks in order, and what is shown below some of them, by block."""
    typed: list[str] = []
    shown: dict[int, str] = {}
    for label, block in doc_commands.blocks(PAGE.read_text("utf-8")):
        if label == "sh":
            typed.append(block)
        elif label == "text":
            shown[len(typed) - 1] = block
    return typed, shown


def type_all(folder: Path, cuts: dict[str, Any], cut_text: int, seconds: float) -> list[str]:
    """What each block printed. The shell stops at the first command that fails."""
    typed, _ = steps()
    before = PAGE.read_text("utf-8").split(f"<!-- {CUT} -->")[0]
    at = len([label for label, _ in doc_commands.blocks(before) if label == "sh"])
    (folder / "cuts.yaml").write_text(yaml.safe_dump(cuts), "utf-8")
    change = [sys.executable, "-c", f"'{MERGE}'", "../cuts.yaml", str(cut_text)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines = ["set -e -o pipefail", 'trap "kill %1 2>/dev/null || true" EXIT']
    for number, block in enumerate(typed):
        if number == at:
            lines.append(" ".join(change))
        lines += [f"echo '{MARK.format(number)}'", block.replace("8000", port)]
    tools = folder / "bin"
    tools.mkdir()
    (tools / "potstill").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m potstill "$@"\n')
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for one in tools.iterdir():
        one.chmod(0o755)
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGTERM)  # what the shell had started ends too
        raise
    assert shell.returncode == 0, printed[-4000:]
    assert "Traceback" not in printed
    return re.split(r"=== block \d+ ===\n", printed)[1:]


MERGE = """
import sys, yaml
from pathlib import Path
def merge(old, new):
    for name, value in new.items():
        old[name] = merge(old.get(name) or {}, value) if isinstance(value, dict) else value
    return old
recipe = Path("recipe.yaml")
cuts = yaml.safe_load(Path(sys.argv[1]).read_text("utf-8"))
recipe.write_text(yaml.safe_dump(merge(yaml.safe_load(recipe.read_text("utf-8")), cuts)), "utf-8")
text = Path("documents/handbook.md")
text.write_text(text.read_text("utf-8")[:int(sys.argv[2])], "utf-8")
"""


def shape(line: str) -> str:
    """A shown line as a pattern: a number for a number, blanks for blanks, `…` for anything."""
    pattern = re.escape(" ".join(line.split())).replace("\\ ", r"\s+").replace("…", ".*")
    return re.sub(r"\d+(?:\\?[.,]\d+)*", r"[\\d.,]+", pattern)


def check(printed: list[str]) -> None:
    """Each shown line is among what came, in its order."""
    typed, shown = steps()
    assert len(printed) == len(typed)
    for number, block in shown.items():
        rest = printed[number].splitlines()
        for line in filter(str.strip, block.splitlines()):
            found = [k for k, one in enumerate(rest) if re.search(shape(line), one)]
            assert found, f"{typed[number]}: nothing like {line!r} in\n{printed[number]}"
            rest = rest[found[0] + 1 :]
    chat = next(printed[k] for k, block in enumerate(typed) if "potstill chat" in block)
    assert "handbook.md" in chat
    answered = next(printed[k] for k, block in enumerate(typed) if "chat/completions" in block)
    assert '"citations"' in answered
    assert '"content"' in answered


@pytest.mark.parametrize(
    ("line", "came", "fits"),
    [
        ("KL 0.42 (0.40 to 0.44)", "KL   1,000  (2 to 3.5)", True),
        ("KL 0.42", "KL nan", False),
        ("kept 12 of …", "kept 3 of all (four)", True),
        ("kept 12 of", "lost 3 of", False),
    ],
)
def test_the_shape_of_a_line(line: str, came: str, fits: bool) -> None:
    assert bool(re.search(shape(line), came)) is fits


@pytest.mark.whole
def test_the_tutorial_as_it_is_written(tmp_path: Path, tiny_teacher: Path) -> None:
    measured = {"max_examples": 3, "answer_tokens": 4, "resamples": 100, "speed_rounds": 1}
    cuts = {
        "teacher": str(tiny_teacher),
        "ingest": {"chunk_tokens": 160},
        "generate": {"backend": "fake", "pairs_per_chunk": 3},
        "distill": {
            "student": {"fit_tokens": 256, "calibration_tokens": 64},
            "epochs": 1,
            "step_tokens": 512,
            "validations": 1,
        },
        "evaluate": measured | {"speed_tokens": 2},
        "export": measured | {"speed_tokens": 2, "quantisations": ["q8_0"]},
    }
    check(type_all(tmp_path, cuts, 6000, seconds=800))


@pytest.mark.slow
def test_the_tutorial_with_the_real_teacher(tmp_path: Path) -> None:
    check(type_all(tmp_path, REAL, 7000, seconds=1500))
