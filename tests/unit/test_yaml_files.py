"""Every YAML that comes with the project: recipes and studies validate, in files and in the pages'
examples, and every other file parses."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.recipe import Recipe, builtin_recipes
from potstill.tune import Study
from potstill.tune.config import StudyConfig

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```ya?ml\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPE, STUDY = set(Recipe.model_fields), set(StudyConfig.model_fields)


@cache
def tracked(*endings: str) -> list[Path]:
    """The project's own files: those that git knows, or all where it is no checkout."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    found = [ROOT / name for name in done.stdout.splitlines()] if done.returncode == 0 else []
    return sorted(
        one for one in found or ROOT.rglob("*") if one.suffix in endings and one.is_file()
    )


def kind_of(data: Any) -> str:
    """recipe, study, a part of a recipe, or something else."""
    if not isinstance(data, dict):
        return "other"
    keys = set(data)
    if {"teacher", "ingest", "name"} <= keys:
        return "recipe"
    if {"search", "objective"} <= keys or "search" in keys:
        return "study"
    return "part" if keys & RECIPE - {"name", "description"} else "other"


FILES = [
    (path, list(yaml.safe_load_all(path.read_text("utf-8")))) for path in tracked(".yaml", ".yml")
]
BLOCKS = [
    pytest.param(block[1], id=f"{path.relative_to(ROOT)}:{number}")
    for path in tracked(".md")
    for number, block in enumerate(FENCED.finditer(path.read_text("utf-8")))
]


def files(kind: str) -> list[Path]:
    return [path for path, documents in FILES if [kind_of(one) for one in documents] == [kind]]


def test_the_files_that_are_recipes_and_studies_are_found() -> None:
    assert len(FILES) == len(tracked(".yaml", ".yml")) > 0  # all of them were parsed above
    package = ROOT / "src" / "potstill"
    assert set(files("recipe")) >= set((package / "recipes").glob("*.yaml"))
    assert set(files("study")) >= set((package / "studies").glob("*.yaml"))
    assert len(files("recipe")) >= len(builtin_recipes()) > 0
    assert not files("part")  # a file is a whole recipe, or none


@pytest.mark.parametrize("path", files("recipe"), ids=lambda path: path.stem)
def test_a_recipe_file_is_valid(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.description
    if path.parent.name == "recipes":
        assert recipe.name == path.stem


@pytest.mark.parametrize("path", files("study"), ids=lambda path: path.stem)
def test_a_study_file_is_valid(path: Path) -> None:
    assert Study.load(path).dimensions


def whole(part: dict[str, Any]) -> dict[str, Any]:
    """The part in place of what a built-in recipe says in those fields: the quickstart, or the
    first one for the same task, where the part says what its task is."""
    builtin = [yaml.safe_load(path.read_text("utf-8")) for path in builtin_recipes().values()]
    base = next(one for one in builtin if one["name"] == "quickstart")
    if "task" in part:
        base = next(one for one in builtin if one.get("task") == part["task"])
    merged = dict(base)
    for name, value in part.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = {**base[name], **value} if both else value
    return merged


@pytest.mark.parametrize("text", BLOCKS)
def test_an_example_of_the_pages_is_valid(text: str) -> None:
    data = yaml.safe_load(text)
    kind = kind_of(data)
    if kind == "recipe":
        Recipe.from_dict(data)
    elif kind == "study":
        study = {"name": "page", "recipe": "quickstart", "objective": {"validation_kl": "minimize"}}
        Study.from_dict(study | data)
    else:  # what is no recipe at all has no place in such a block
        assert set(data) <= RECIPE
        Recipe.from_dict(whole(data))


def test_the_pages_hold_examples() -> None:
    kinds = [kind_of(yaml.safe_load(str(one.values[0]))) for one in BLOCKS]
    assert kinds.count("part") >= 10
