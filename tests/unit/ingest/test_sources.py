"""Which files a recipe's sources name, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import InputError, MissingExtraError, RecipeError
from potstill.ingest import IngestConfig, tesseract
from potstill.ingest.plan import estimate, facts, source_digest
from potstill.ingest.sources import SourceFile, find_sources
from potstill.models.refs import digest, parse


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "docs" / "deep").mkdir(parents=True)
    (folder / "docs" / "b.txt").write_text("b")
    (folder / "docs" / "a.md").write_text("a")
    (folder / "docs" / ".hidden.md").write_text("no")
    (folder / "docs" / "deep" / "c.txt").write_text("c")
    return folder


def names(sources: list[str], project: Path) -> list[str]:
    return [file.name for file in find_sources(sources, project)]


def test_a_folder_gives_its_visible_files_sorted(project: Path) -> None:
    assert names(["docs"], project) == ["docs/a.md", "docs/b.txt", "docs/deep/c.txt"]


def test_a_glob_and_a_file_that_overlap_give_each_file_once_in_the_order_named(
    project: Path,
) -> None:
    found = names(["docs/b.txt", "docs/**/*.txt", "docs/*.md"], project)
    assert found == ["docs/b.txt", "docs/deep/c.txt", "docs/a.md"]


def test_an_absolute_path_inside_the_project_is_named_relative_to_it(project: Path) -> None:
    assert names([str(project / "docs" / "a.md")], project) == ["docs/a.md"]
    assert names([str(project / "docs" / "*.md")], project) == ["docs/a.md"]


def test_a_name_with_glob_characters_that_exists_is_a_file(project: Path) -> None:
    (project / "notes [old].txt").write_text("x")
    assert names(["notes [old].txt"], project) == ["notes [old].txt"]


def test_a_sample_is_found_by_its_name(project: Path) -> None:
    (file,) = find_sources(["sample:handbook.pdf"], project)
    assert file.name == "sample:handbook.pdf"
    assert file.path.read_bytes().startswith(b"%PDF-")


def test_an_unknown_sample_names_the_ones_that_exist(project: Path) -> None:
    with pytest.raises(InputError, match=r"no sample file 'manual\.pdf'") as caught:
        find_sources(["sample:manual.pdf"], project)
    assert "handbook.docx" in caught.value.hint


def test_a_missing_file_suggests_the_nearest_name(project: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        find_sources(["docs/a.mb"], project)
    assert "Did you mean 'a.md'?" in caught.value.hint


@pytest.mark.parametrize("source", ["x" * 5000, "~nobody-of-that-name/a.md"])
def test_a_name_that_the_system_does_not_take_is_one_line(project: Path, source: str) -> None:
    with pytest.raises(InputError, match="is no path that this system takes") as caught:
        find_sources([source], project)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", ["empty", "docs/*.pdf"])
def test_a_source_that_names_no_file_is_refused(project: Path, source: str) -> None:
    (project / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no file|No file matches"):
        find_sources([source], project)


@pytest.mark.parametrize(
    "source", ["../outside.txt", "{outside}", "docs/../../outside.txt", "../*"]
)
def test_a_path_that_leaves_the_project_is_refused(project: Path, source: str) -> None:
    outside = project.parent / "outside.txt"
    outside.write_text("secret")
    with pytest.raises(InputError, match="leaves the project") as caught:
        find_sources([source.format(outside=outside)], project)
    assert "--project" in caught.value.hint


@pytest.mark.parametrize("source", ["docs", "docs/link.txt", "docs/*.txt"])
def test_a_link_that_leaves_the_project_is_refused(project: Path, source: str) -> None:
    outside = project.parent / "outside.txt"
    outside.write_text("secret")
    (project / "docs" / "link.txt").symlink_to(outside)
    with pytest.raises(InputError, match="leaves the project"):
        find_sources([source], project)


def test_a_linked_folder_that_leaves_the_project_is_refused(project: Path) -> None:
    outside = project.parent / "outside"
    outside.mkdir()
    (project / "docs" / "more").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InputError, match="leaves the project"):
        find_sources(["docs"], project)


def test_links_inside_the_project_are_followed_once_even_in_a_circle(project: Path) -> None:
    (project / "docs" / "deep" / "up").symlink_to(project / "docs", target_is_directory=True)
    assert names(["docs"], project) == ["docs/a.md", "docs/b.txt", "docs/deep/c.txt"]


def test_a_link_to_nothing_is_refused(project: Path) -> None:
    (project / "gone.txt").symlink_to(project / "nowhere.txt")
    with pytest.raises(InputError, match="link to a file that does not exist"):
        find_sources(["gone.txt"], project)


def test_facts_change_with_the_content_and_only_with_the_content(project: Path) -> None:
    model = project / "model.gguf"
    model.write_bytes(b"GGUF weights")
    config = IngestConfig(sources=["docs/*.md"], teacher=str(model))
    before = facts(config, project)
    assert before == facts(config, project)
    assert before["tokenizer"] == digest(parse(model))
    (project / "docs" / "a.md").write_text("changed")
    after = facts(config, project)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"source docs/a.md"}


def test_a_plan_reckons_with_the_files_that_will_be_read(project: Path) -> None:
    (project / "docs" / "a.md").write_text("word " * 4000)  # about 5,000 tokens
    config = IngestConfig(sources=["docs/*.md"], teacher="t", chunk_tokens=400, overlap_tokens=100)
    costs = estimate(config, {}, project)
    assert costs["files"] == 1
    assert costs["chunks"] == pytest.approx(5000 / 200, abs=1)
    overlapping = config.model_copy(update={"overlap_tokens": 390})
    assert estimate(overlapping, {}, project)["chunks"] < 70
    refused = config.model_copy(update={"max_file_bytes": 100})
    assert estimate(refused, {}, project)["chunks"] == 1


def test_a_plan_reckons_with_rows_and_pictures(project: Path) -> None:
    (project / "rows.csv").write_text("x" * 400_000)
    config = IngestConfig(sources=["rows.csv"], chunk_tokens=400, overlap_tokens=0)
    costs = estimate(config, {}, project)
    assert costs["rows"] == 1000
    assert costs["chunks"] == 0
    assert costs["disk_bytes"] >= 4 * 400_000
    limited = config.model_copy(update={"max_file_bytes": 1})  # a table is streamed all the same
    assert estimate(limited, {}, project)["rows"] == 1000
    (project / "page.png").write_bytes(bytes(100))
    scanned = config.model_copy(update={"sources": ["page.png"]})
    assert estimate(scanned, {}, project)["chunks"] == 2
    assert estimate(scanned, {}, project)["seconds"] > 10


def test_facts_name_the_ocr_program_and_say_if_it_is_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = project / "model.gguf"
    model.write_bytes(b"GGUF weights")
    config = IngestConfig(sources=["docs"], teacher=str(model), ocr_engine="tesseract")
    monkeypatch.setenv("PATH", "")
    tesseract.version.cache_clear()
    with pytest.raises(MissingExtraError, match="tesseract"):
        facts(config, project)
    never = config.model_copy(update={"ocr": "never"})
    assert "python-pptx" in facts(never, project)["readers"]


def test_facts_need_a_teacher(project: Path) -> None:
    with pytest.raises(RecipeError, match="teacher is empty"):
        facts(IngestConfig(sources=["docs"]), project)


def test_facts_name_a_missing_source(project: Path) -> None:
    model = project / "model.gguf"
    model.write_bytes(b"GGUF weights")
    with pytest.raises(InputError, match=r"'nope\.pdf'"):
        facts(IngestConfig(sources=["nope.pdf"], teacher=str(model)), project)


def test_a_file_that_will_be_refused_unread_is_not_hashed(project: Path) -> None:
    file = SourceFile("b", project / "docs" / "b.txt")
    assert source_digest(file, 0) == "too large: 1 bytes"
    assert len(source_digest(file, 1)) == 64


@pytest.mark.parametrize(
    "fields",
    [
        {"sources": []},
        {"sources": [" "]},
        {"sources": ["a"], "chunk_tokens": 100, "overlap_tokens": 100},
        {"sources": ["a"], "chunk_tokens": 40, "overlap_tokens": 0, "min_chunk_tokens": 41},
        {"sources": ["a"], "ocr": "sometimes"},
        {"sources": ["a"], "unknown": 1},
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        IngestConfig.model_validate(fields)
