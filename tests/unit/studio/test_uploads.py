"""What is dropped into the page becomes a file below documents/, or a reason why not."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from studio_runs import browser

from potstill.errors import InputError
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
