"""What is sent to the hub, to whom it is shown, and what the user hears where the hub refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from potstill.errors import InputError, UsageError
from potstill.export.push import packed, send


class FakeHub:
    """Keeps what it is told; `there` is the visibility of a repository that exists already."""

    def __init__(self, there: str | None = None, refuses: Exception | None = None) -> None:
        self.there, self.refuses = there, refuses
        self.sent: list[dict[str, Any]] = []

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        assert repo_type == "model"
        if self.refuses:
            raise self.refuses
        self.there = self.there or ("private" if private else "public")

    def repo_info(self, name: str, *, repo_type: str) -> Any:
        return SimpleNamespace(private=self.there == "private")

    def upload_folder(self, **what: Any) -> Any:
        self.sent.append(what)
        return SimpleNamespace(repo_url=f"https://huggingface.co/{what['repo_id']}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "README.md").write_text("# Student\n")
    (tmp_path / "student-f16.gguf").write_bytes(b"GGUF" * 100)
    (tmp_path / "safetensors" / "config.json").write_text("{}")
    return tmp_path


def test_a_parcel_lists_every_file_and_is_private_unless_said(folder: Path) -> None:
    parcel = packed(folder, "me/student")
    assert dict(parcel.files) == {
        "README.md": 10,
        "safetensors/config.json": 2,
        "student-f16.gguf": 400,
    }
    assert (parcel.private, parcel.bytes) == (True, 412)
    assert not packed(folder, "me/student", public=True).private
    assert parcel.as_dict()["files"][0] == {"path": "README.md", "bytes": 10}


def test_everything_goes_in_one_commit_to_a_private_repository(folder: Path) -> None:
    hub = FakeHub()
    assert send(packed(folder, "me/student"), hub) == "https://huggingface.co/me/student"
    assert hub.there == "private"
    assert [one["folder_path"] for one in hub.sent] == [folder]
    assert all("token" not in one for one in hub.sent)


def test_a_public_repository_does_not_take_what_was_meant_to_be_private(folder: Path) -> None:
    hub = FakeHub(there="public")
    with pytest.raises(UsageError, match="is there already and is public"):
        send(packed(folder, "me/student"), hub)
    assert hub.sent == []
    send(packed(folder, "me/student", public=True), hub)
    assert len(hub.sent) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalTokenNotFoundError("none"), "not logged in"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (OSError("403 for hf_secretsecret"), "403 for \\(token\\)"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    folder: Path, error: Exception, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        send(packed(folder, "me/student"), FakeHub(refuses=error))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["student", "me/", "/x", "me/a/b", "me/ x", "../x"])
def test_a_name_that_is_no_repositorys_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no repository's name"):
        packed(folder, name)


def test_a_folder_without_a_card_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no exported student"):
        packed(tmp_path / "none", "me/student")
