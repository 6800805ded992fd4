"""`potstill export` and `potstill push` on a finished run, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from potstill import pipeline
from potstill.recipe import Recipe


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


@pytest.mark.whole
def test_another_file_is_made_chosen_and_shown_before_it_is_sent(
    tmp_path: Path, small_recipe: dict[str, Any]
) -> None:
    from potstill.sample import sample_path

    text = sample_path("handbook.md").read_text("utf-8")
    (tmp_path / "notes.md").write_text(text[:6000], "utf-8")
    export = small_recipe["export"] | {"max_examples": 2, "quantisations": []}
    run = pipeline.run(Recipe.from_dict(small_recipe | {"export": export}), tmp_path)
    project = ["--project", str(tmp_path)]
    f16 = run.exported()
    evaluated = run.record["stages"]["evaluate"]["key"]

    shown = potstill("export", "small", *project)
    assert shown.returncode == 0, shown.stderr
    assert "student-f16.gguf" in shown.stdout
    assert f"Take {f16}: the smallest that" in shown.stdout

    # Q8_0 takes a little more than half of F16: it alone is made and is within the target.
    size = f16.stat().st_size
    made = potstill(
        "export", "small", "--kinds", "Q8_0", "--fits", f"{size - 1}", "--json", *project
    )
    assert made.returncode == 0, made.stderr
    assert "finished stages are reused" in made.stderr
    found = json.loads(made.stdout)
    assert set(found["models"]) == {"gguf-f16", "gguf-q8_0"}
    assert found["chosen"]["model"] == "gguf-q8_0"
    assert Path(found["chosen"]["path"]).stat().st_size < size
    assert [hop["to"] for hop in found["chain"]] == ["distilled", "gguf-f16", "gguf-q8_0"]
    again = pipeline.open_run("small", tmp_path)
    assert again.record["stages"]["evaluate"]["key"] == evaluated
    assert "gguf-q8_0" in again.report["models"]
    assert next(row["hop"] for row in again.report["parity"]) == "teacher to distilled"

    refused = potstill("export", "small", "--fits", "1kB", *project)
    assert refused.returncode == 2
    assert "No file is within the target" in refused.stderr
    assert potstill("export", "small", "--kinds", "q3", *project).returncode == 2

    dry = potstill("push", "small", "me/small", *project)
    assert dry.returncode == 0, dry.stderr
    assert "private: you alone can read it" in dry.stdout
    assert "Nothing was sent" in dry.stdout
    for name in ("student-q8_0.gguf", "safetensors/config.json", "Modelfile", "README.md"):
        assert name in dry.stdout
    # What would be sent says nothing of this machine's folders.
    for file in (again.folder / "export").rglob("*"):
        if file.suffix in (".json", ".md", "") and file.is_file():
            assert str(tmp_path.parent) not in file.read_text("utf-8"), file

    # A kind that loses more than the recipe allows is left out; who named it is told.
    file = again.folder / "recipe.yaml"
    bound = "quantised_max_kl: 0.5"
    assert bound in file.read_text("utf-8")
    file.write_text(file.read_text("utf-8").replace(bound, "quantised_max_kl: 1e-12"), "utf-8")
    lossy = potstill("export", "small", "--kinds", "q4_0", *project)
    assert lossy.returncode == 4
    assert "Left out: " in lossy.stdout
    assert "Take a kind with more bits" in lossy.stderr
    assert pipeline.open_run("small", tmp_path).exported() == f16
    repeated = potstill("export", "small", "--kinds", "q4_0", *project)
    assert "Making" not in repeated.stderr  # it was tried
