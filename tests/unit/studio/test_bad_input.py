"""What goes wrong around a page is said in it, in words, with the way out."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from studio_runs import browser, make_run

from potstill import editing
from potstill.recipe import Recipe
from potstill.studio import launch


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["a/b", "../up", "", "Mine", "x" * 65, "a\\b", 3])
def test_a_name_that_is_no_folders_name_is_said_at_its_field(tmp_path: Path, name: Any) -> None:
    client, studio = browser(tmp_path)
    text = yaml.safe_dump({**Recipe.load("quickstart").to_dict(), "name": name})
    said = client.post("/new/read", json={"yaml": text}).json()
    assert "name" in said["mistakes"]
    refused = client.post("/runs", data={"form": studio.form, "yaml": text}, follow_redirects=False)
    assert refused.status_code >= 400
    assert not (tmp_path / "runs").exists()


def test_no_disk_left_is_said_where_it_was_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    plain = Recipe.load("quickstart").model_dump(mode="json") | {"name": "made"}
    (folder / "recipe.yaml").write_text(Recipe.from_dict(plain).to_yaml(), "utf-8")
    client, studio = browser(tmp_path)
    monkeypatch.setattr(editing, "write_records", full)
    fields = {"form": studio.form, "row": "row-1", "action": "reject"}
    said = client.post("/runs/made/rows", data=fields)
    assert said.status_code == 400
    assert "No space left" in said.text
    assert "<html" not in said.text  # in its place, not a page of its own
    monkeypatch.setattr(launch.Path, "open", full)
    said = client.post("/runs/made/resume", data={"form": studio.form})
    assert said.status_code == 400
    assert "No space left" in said.text


def test_a_run_whose_folder_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    client, studio = browser(tmp_path)
    assert client.get("/runs/made/data").status_code == 200
    shutil.rmtree(folder)
    fields = {"form": studio.form, "row": "row-1", "action": "reject"}
    for path in ("rows", "service", "again", "resume", "stop"):
        said = client.post(f"/runs/made/{path}", data=fields)
        assert said.status_code == 404, path
        assert "There is no run made" in said.text, path
    for path in ("", "/data", "/results", "/chat", "/service", "/live", "/drift"):
        assert "There is no run made" in client.get(f"/runs/made{path}").text, path


def test_a_model_file_that_is_gone_is_said_in_the_chat(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "export").mkdir()
    (folder / "export" / "student.gguf").write_bytes(b"x")
    client, _ = browser(tmp_path)
    assert "student.gguf" in client.get("/runs/made/chat").text
    body = {"model": "student.gguf", "question": "Who?", "passages": False}
    (folder / "export" / "student.gguf").unlink()
    said = client.post("/runs/made/chat", json=body).text
    assert "has no model student.gguf" in said
    assert "Reload the page" in said
