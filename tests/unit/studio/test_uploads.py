"""What is dropped into the page becomes a file below documents/, or a reason why not."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plugin_packages import on_the_path, write_example, write_package
from starlette.testclient import TestClient
from studio_runs import browser

from potstill.errors import InputError
from potstill.ingest.reader_plugins import ReaderHere, readers_here
from potstill.ingest.readers import OWN
from potstill.recipe import builtin_recipes
from potstill.studio import uploads


@given(st.text(max_size=300), st.sampled_from([".md", ".PDF", ".csv"]))
def test_a_kept_name_is_one_plain_name_of_a_known_kind(name: str, suffix: str) -> None:
    try:
        kept = uploads.clean_name(name + suffix)
    except InputError:
        return
    assert PurePath(kept).name == kept
    assert kept.lower().endswith(suffix.lower())
    assert not kept.startswith(".")
    assert not set(kept) & set("/\\\0\n\r\"'<>|:*?$`")
    assert len(kept) < 200


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd.md", "passwd.md"),
        ("C:\\docs\\Hand book.PDF", "Hand book.pdf"),
        ("a/b\\c.txt", "c.txt"),
        ("..md", None),
        ("virus.exe", None),
        ("", None),
        ("Überblick (1).docx", "Überblick (1).docx"),
    ],
)
def test_names(name: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(InputError):
            uploads.clean_name(name)
    else:
        assert uploads.clean_name(name) == kept


def sent(client: TestClient, name: str, body: bytes) -> tuple[int, str]:
    answer = client.post("/files", params={"name": name}, content=body)
    return answer.status_code, answer.text


def test_files_are_kept_once_and_none_overwrites_another(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    assert '"documents/a.md"' in sent(client, "a.md", b"# One")[1]
    assert '"documents/a.md"' in sent(client, "x/a.md", b"# One")[1]
    assert '"documents/a-2.md"' in sent(client, "a.md", b"# Two")[1]
    found = sorted(path.name for path in (tmp_path / "documents").iterdir())
    assert found == ["a-2.md", "a.md"]
    assert [one for one, _ in uploads.files_of(tmp_path)] == ["documents/a-2.md", "documents/a.md"]


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("a.exe", b"x", "of no kind that Potstill reads"),
        ("a.pdf", b"plain text", "is named .pdf but is text"),
        ("a.md", b"%PDF-1.7", "but is a PDF"),
        ("a.csv", b"\x00\x01\x02" * 99, "but is binary data"),
        ("a.md", b"", "empty"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, body: bytes, words: str
) -> None:
    client, _ = browser(tmp_path)
    status, said = sent(client, name, body)
    assert status == 400
    assert words in said
    assert (
        not list((tmp_path / "documents").glob("*")) if (tmp_path / "documents").exists() else True
    )


def test_too_large_is_refused_by_what_is_said_and_by_what_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = browser(tmp_path)
    huge = {"Content-Length": str(uploads.LARGEST_DOCUMENT + 1)}
    answer = client.post("/files?name=a.md", content=b"x", headers=huge)
    assert "is larger than 200 MB" in answer.text
    monkeypatch.setattr(uploads, "LARGEST_DOCUMENT", 1000)
    pieces = (b"x" * 400 for _ in range(5))  # says no length
    answer = client.post("/files?name=a.md", content=pieces)
    assert answer.status_code == 400
    assert not list((tmp_path / "documents").glob("*"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    (tmp_path / "documents").write_text("a file in its place")
    status, said = sent(client, "a.md", b"# One")
    assert status == 400
    assert "Cannot" in said


def test_a_file_that_only_a_plug_in_reads_is_taken_and_its_reader_named(tmp_path: Path) -> None:
    with on_the_path(write_example(tmp_path / "site")):
        client, studio = browser(tmp_path / "project")
        page = client.get("/new?from=quickstart").text
        assert ".srt" in page
        said = client.post(
            "/files?name=talk.srt", content=b"1\n00:00:01,000 --> 00:00:04,000\nHi\n"
        )
        assert said.json()["source"] == "documents/talk.srt"
        assert uploads.files_of(studio.project)[0][0] == "documents/talk.srt"

        body = {
            "yaml": builtin_recipes()["quickstart"].read_text("utf-8"),
            "add": ["documents/talk.srt"],
        }
        first = yaml.safe_load(client.post("/new/sources", json=body).json()["yaml"])
        assert first["ingest"]["readers"] == [{"name": "subtitles"}]
        body = {"yaml": yaml.safe_dump(first), "add": ["documents/talk.srt"]}
        again = yaml.safe_load(client.post("/new/sources", json=body).json()["yaml"])
        assert again["ingest"]["readers"] == [{"name": "subtitles"}], "named once"
        own = client.get("/new?from=quickstart&own=1").text
        assert "name: subtitles" in own

        damaged = client.post("/files?name=movie.srt", content=bytes(range(256)) * 4)
        assert damaged.status_code == 400
        assert "named .srt but is" in damaged.text
    client, _ = browser(tmp_path / "other")
    assert client.post("/files?name=talk.srt", content=b"x").status_code == 400


def test_a_reader_that_does_not_work_hides_no_other(tmp_path: Path) -> None:
    points = {
        "potstill.readers": {
            "gone": "broken_plugin:READER",
            "pdf": "potstill_example.subtitles:READER",
        }
    }
    site = write_example(tmp_path / "site")
    with on_the_path(site, write_package(tmp_path / "other", "other", "1", points)):
        assert readers_here(()) == {}, "two would read .srt, and one cannot be imported"
        assert set(uploads.accepted()) == {*OWN}
    with on_the_path(site):
        assert readers_here(()) == {".srt": ReaderHere("subtitles", ("text",))}
        assert readers_here((".srt",)) == {}
