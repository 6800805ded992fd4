"""Home lists the projects that were opened before, and opens or makes another beside this one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx2
import pytest
from studio_runs import browser, make_run

from potstill.studio.projects import MOST, list_file, others, remember
from potstill.studio.server import Opened
from potstill.studio.session import Studio


@pytest.fixture(autouse=True)
def own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list of projects, wherever this system keeps it."""
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: tmp_path / "state" / name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "handbook"
    folder.mkdir(parents=True)
    return folder


def test_projects_that_were_opened_are_listed_with_their_runs(
    tmp_path: Path, project: Path
) -> None:
    client, studio = browser(project)
    assert "None was opened yet" in client.get("/").text
    for name in ("old", "other", "handbook"):
        (tmp_path / "work" / name).mkdir(exist_ok=True)
        remember(tmp_path / "work" / name)
    make_run(tmp_path / "work" / "other", "first")
    (tmp_path / "work" / "old").rmdir()  # moved away since
    (found,) = others(studio)
    assert (found["name"], found["runs"], found["working"]) == ("other", 1, 0)
    assert str(tmp_path / "work" / "other") in client.get("/").text


def test_the_list_keeps_the_last_ones_and_survives_damage(tmp_path: Path, project: Path) -> None:
    for number in range(MOST + 3):
        (tmp_path / f"p{number}").mkdir()
        remember(tmp_path / f"p{number}")
    remember(tmp_path / "p5")
    names = [one["name"] for one in others(Studio(project))]
    assert len(names) == MOST
    assert names[:2] == ["p5", f"p{MOST + 2}"]
    list_file().write_text("{")
    assert others(Studio(project)) == []
    remember(tmp_path / "p5")
    assert [one["name"] for one in others(Studio(project))] == ["p5"]


def test_another_project_has_a_studio_of_its_own_in_the_same_process(
    tmp_path: Path, project: Path
) -> None:
    other = tmp_path / "work" / "other"
    other.mkdir()
    make_run(other, "theirs")
    remember(other)
    with contextlib.closing(Opened()) as opened:
        client, studio = browser(project)
        studio.opener = opened.open

        def ask(**fields: str) -> tuple[int, str]:
            answer = client.post("/projects", data={"form": studio.form, **fields})
            return answer.status_code, answer.text

        address = client.post("/projects", data={"form": studio.form, "folder": str(other)})
        found = address.json()["address"]
        with httpx2.Client(follow_redirects=True) as theirs:
            page = theirs.get(found).text
            assert "theirs" in page
            assert theirs.get(found.partition("/?")[0]).status_code == 200  # it was let in
        assert opened.open(other) == found  # once more: the same one
        secret = client.headers.pop("X-Form")  # as a browser whose script has not come
        plain = client.post("/projects", data={"form": studio.form, "folder": str(other)})
        client.headers["X-Form"] = secret
        assert f'href="{found}"' in plain.text
        assert ask(folder=str(tmp_path))[0] == 404  # a page may not name any folder
        status, text = ask(name="../up", recipe="quickstart")
        assert (status, "cannot be the name" in text) == (404, True)
        made = client.post(
            "/projects", data={"form": studio.form, "name": "rules", "recipe": "quickstart"}
        ).json()
        assert (tmp_path / "work" / "rules" / "recipe.yaml").is_file()
        with httpx2.Client(follow_redirects=True) as theirs:
            page = theirs.get(made["address"])
            assert page.url.path == "/new"
            assert "name: rules" in page.text
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(found)


def test_a_studio_that_cannot_open_another_says_how(tmp_path: Path, project: Path) -> None:
    (tmp_path / "other").mkdir()
    remember(tmp_path / "other")
    client, studio = browser(project)
    answer = client.post("/projects", data={"form": studio.form, "folder": str(tmp_path / "other")})
    assert answer.status_code == 404
    assert f"potstill studio --project {tmp_path / 'other'}" in answer.text
