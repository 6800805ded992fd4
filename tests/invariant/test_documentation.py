"""The documentation can be built, leads nowhere dead, and shows commands that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import doc_commands
import doc_fields
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]


def tool(name: str) -> Any:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make_site = tool("make_site")
PAGES = [str(page) for page in make_site.pages()]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_exists(page: str) -> None:
    shown = doc_commands.commands((ROOT / page).read_text("utf-8"))
    problems = {one.text: doc_commands.wrong(one) for one in shown}
    assert {text: said for text, said in problems.items() if said} == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```\npotstill brew quickstart\n```", "has no command brew"),
        ("```\npotstill run quickstart --fast\n```", "has no option --fast"),
        ("```\npotstill run\n```", "needs recipe"),
        ("```\npotstill verify one two\n```", "does not take two"),
        ("```\npotstill run quickstart \\\n  --fast\n```", "has no option --fast"),
        ("Give `potstill keys add|forget`.", "has no command forget"),
        ("Give `potstill doctor --loud`.", "has no option --loud"),
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str, said: str) -> None:
    (shown,) = doc_commands.commands(text)
    assert said in (doc_commands.wrong(shown) or "")


def test_every_recipe_field_that_is_named_exists() -> None:
    named = {
        (page, field)
        for page in PAGES
        if page != "CHANGELOG.md" and not page.startswith("docs/reference")
        for field in doc_fields.fields((ROOT / page).read_text("utf-8"))
    }
    assert len(named) > 100
    assert {(page, field) for page, field in named if not doc_fields.exists(field)} == set()
    made_up = doc_fields.fields(
        "`distill.student.hue`, `--set distill.hue=3`, `distill.epochs`\n"
        "```yaml\ndistill:\n  lora: {tint: 1, rank: 4}\n```\n"
    )
    assert {one for one in made_up if not doc_fields.exists(one)} == {
        "distill.student.hue",
        "distill.hue",
        "distill.lora.tint",
    }


def test_every_page_is_in_one_section() -> None:
    placed = [page for chosen in make_site.sections().values() for page in chosen]
    assert sorted(map(str, placed)) == sorted(PAGES)


def test_no_two_pages_share_a_place_where_case_does_not_count() -> None:
    places = [str(make_site.place_in_site(page)).lower() for page in make_site.pages()]
    assert len(set(places)) == len(places)


def test_the_figures_of_the_readme_are_those_of_the_page_of_figures() -> None:
    readme = (ROOT / "README.md").read_text("utf-8").split("## Measured")[1]
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    whole = (ROOT / "docs" / "measured.md").read_text("utf-8").splitlines()
    assert len(rows) > 10
    assert [row for row in rows if row not in whole] == []


def test_llms_txt_is_what_the_pages_say() -> None:
    assert (ROOT / "docs" / "llms.txt").read_text("utf-8") == make_site.llms()


def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_site, "WORK", tmp_path / "work")
    monkeypatch.setattr(make_site, "SITE", tmp_path / "site")
    make_site.build()
    for page in make_site.pages():
        place = make_site.place_in_site(page)
        folder = place.parent if place.name == "index.md" else place.with_suffix("")
        assert (tmp_path / "site" / folder / "index.html").exists()
        assert (tmp_path / "site" / place).exists()
    assert "<math" in (tmp_path / "site/concepts/spans/index.html").read_text("utf-8")


def test_a_dead_link_or_heading_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "README.md").write_text("# One\n\nWords. [Other](docs/two.md#there)\n", "utf-8")
    two = tmp_path / "docs" / "two.md"
    monkeypatch.setattr(make_site, "ROOT", tmp_path)
    monkeypatch.setattr(make_site, "WORK", tmp_path / "work")
    monkeypatch.setattr(make_site, "SITE", tmp_path / "site")
    with pytest.raises(SystemExit, match="leads nowhere"):
        make_site.build()
    two.write_text("# Two\n\nWords.\n\n## Here\n", "utf-8")
    with pytest.raises(SystemExit, match="not built"):
        make_site.build()
    two.write_text(
        '# Two\n\nWords.\n\n## There\n\n<img src="https://example.org/a.png">\n', "utf-8"
    )
    with pytest.raises(SystemExit, match="load from elsewhere"):
        make_site.build()
    two.write_text("# Two\n\nWords.\n\n## There\n", "utf-8")
    make_site.build()
    assert (tmp_path / "site" / "two" / "index.html").exists()


def test_the_notebook_is_valid_and_its_commands_exist() -> None:
    made = tool("make_notebook").notebook()
    path = ROOT / "docs" / "notebooks" / "potstill.ipynb"
    assert path.read_text("utf-8") == made
    read = nbformat.reads(made, as_version=4)
    nbformat.validate(read)
    shown = []
    for cell in read.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            shown += [line for line in lines if line.startswith("!potstill")]
            ast.parse("\n".join(line for line in lines if line[:1] not in "!%"))
    problems = [doc_commands.wrong(doc_commands.Shown(line, typed=True)) for line in shown]
    assert len(shown) > 4
    assert problems == [None] * len(shown)


def test_extras_that_pages_install_exist() -> None:
    known = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
            "optional-dependencies"
        ]
    )
    texts = [(ROOT / page).read_text("utf-8") for page in PAGES]
    texts.append((ROOT / "docs" / "notebooks" / "potstill.ipynb").read_text("utf-8"))
    named = {one for text in texts for one in re.findall(r"potstill\[([a-z,]+)\]", text)}
    assert {extra for group in named for extra in group.split(",")} <= known


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.citation-file-format", "CITATION.cff"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/idea.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_files_for_others_machines_are_valid(schema: str, path: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run(
        [*command, str(ROOT / path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_names_the_version() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == package.get("version", cited["version"])
    assert cited["license"] == package["license"]
