"""A recipe as form and text: the text is the truth, and what is wrong is said where it is."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import yaml
from mock_endpoint import Limits, MockEndpoint
from studio_runs import browser, make_run

from potstill.recipe import Recipe, builtin_recipes
from potstill.studio.session import Studio

QUICKSTART = builtin_recipes()["quickstart"].read_text("utf-8")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """Runs that would have been started: (folder, anyway)."""
    from potstill.studio.launch import Launcher

    found: list[tuple[Path, bool]] = []

    def start(self: Launcher, folder: Path, project: Path, *, anyway: bool = False) -> None:
        found.append((folder, anyway))

    monkeypatch.setattr(Launcher, "start", start)
    return found


def test_a_field_is_set_in_the_text_and_its_mistake_named(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)

    def change(field: str, text: str) -> dict[str, Any]:
        body = {"yaml": QUICKSTART, "field": field, "text": text}
        said: dict[str, Any] = client.post("/new/set", json=body).json()
        return said

    said = change("distill.epochs", "2")
    assert yaml.safe_load(said["yaml"])["distill"]["epochs"] == 2
    assert said["yaml"].startswith("# From a ten-page handbook")
    assert (said["mistakes"], said["general"]) == ({}, [])
    assert "distill.epochs" in change("distill.epochs", "-1")["mistakes"]
    assert "epochs" not in yaml.safe_load(change("distill.epochs", "")["yaml"])["distill"]
    refused = client.post("/new/set", json={"yaml": "a: [", "field": "name", "text": "x"})
    assert refused.status_code == 400
    assert "not valid YAML" in refused.text


def test_text_that_is_no_recipe_has_no_form_until_it_is_one_again(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    said = client.post("/new/read", json={"yaml": "name: [oops"}).json()
    assert "not valid YAML" in said["general"][0]
    assert "form comes back" in said["form"]
    said = client.post("/new/read", json={"yaml": QUICKSTART}).json()
    assert said["general"] == []
    assert 'data-field="distill.epochs"' in said["form"]
    assert client.post("/new/read", json={"yaml": "a" * 1_100_000}).json()["general"]


def test_the_first_own_file_replaces_the_sample(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)

    def sources(text: str, **change: list[str]) -> tuple[str, list[str]]:
        said = client.post("/new/sources", json={"yaml": text, **change}).json()
        return said["yaml"], yaml.safe_load(said["yaml"])["ingest"]["sources"]

    text, named = sources(QUICKSTART, add=["documents/a.md"])
    assert named == ["documents/a.md"]
    text, named = sources(text, add=["documents/b.md", "documents/a.md"])
    assert named == ["documents/a.md", "documents/b.md"]
    text, named = sources(text, drop=["documents/a.md", "documents/b.md"])
    assert named == []
    said = client.post("/new/read", json={"yaml": text}).json()
    assert "Put files into the box" in said["mistakes"]["ingest.sources"]
    folder = QUICKSTART.replace("[sample:handbook.pdf]", "[documents]")
    assert sources(folder, add=["documents/a.md"])[1] == ["documents"]  # it is in there already


def test_a_run_of_ones_own_files_is_neither_called_nor_described_as_the_samples(
    tmp_path: Path,
) -> None:
    client, _ = browser(tmp_path)
    make_run(tmp_path, "staff-rules")
    page = client.get("/new").text  # nobody asked for the sample
    assert "Put files into the box" in page
    change = {"yaml": QUICKSTART, "add": ["documents/Staff rules.pdf"]}
    text = client.post("/new/sources", json=change).json()["yaml"]
    own = yaml.safe_load(text)
    assert own["name"] == "staff-rules-2"
    assert "description" not in own
    assert "ten-page" not in text
    assert "sample that comes" not in text
    assert own["distill"] == yaml.safe_load(QUICKSTART)["distill"]
    text = client.post("/new/sources", json={"yaml": text, "add": ["documents/b.md"]}).json()
    assert yaml.safe_load(text["yaml"])["name"] == "staff-rules-2"  # the first gives the name
    named = QUICKSTART.replace("name: quickstart", "name: mine")
    kept = client.post("/new/sources", json=change | {"yaml": named}).json()["yaml"]
    assert yaml.safe_load(kept)["name"] == "mine"
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.md").write_text("# Kelp\n", "utf-8")
    page = client.get("/new").text
    assert "name: a\n" in page
    (tmp_path / "documents" / "b.md").write_text("# Tide\n", "utf-8")
    assert "name: documents\n" in client.get("/new").text
    assert "sample:handbook.pdf" in client.get("/new?from=quickstart").text


def test_the_plan_is_the_command_lines(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    shown = client.post("/new/plan", json={"yaml": QUICKSTART}).text
    for words in ("ingest", "export", "in all", "requests", 'data-count="0"'):
        assert words in shown
    assert "Look again" not in shown
    missing = QUICKSTART.replace("sample:handbook.pdf", "nowhere.pdf")
    shown = client.post("/new/plan", json={"yaml": missing}).text
    assert "nowhere.pdf" in shown
    assert "does not exist" in shown
    assert 'data-count="1" data-machine="0"' in shown
    assert "Look again" in shown
    wrong = client.post("/new/plan", json={"yaml": "name: X"})
    assert wrong.status_code == 400


def test_start_writes_the_text_as_it_is_and_never_over_another_run(
    tmp_path: Path, started: list[tuple[Path, bool]]
) -> None:
    client, studio = browser(tmp_path)

    def start(text: str, **more: str) -> Any:
        fields = {"form": studio.form, "yaml": text, **more}
        return client.post("/runs", data=fields, follow_redirects=False)

    answer = start(QUICKSTART.replace("\n", "\r\n"))  # as a browser sends it
    assert answer.headers["location"] == "/runs/quickstart"
    folder = tmp_path / "runs" / "quickstart"
    assert (folder / "recipe.yaml").read_text("utf-8") == QUICKSTART
    assert started == [(folder, False)]
    again = start(QUICKSTART)
    assert again.status_code == 400
    assert "There is a run quickstart already" in again.text
    assert start("name: ../x\nteacher: y").status_code == 400
    other = QUICKSTART.replace("name: quickstart", "name: other")
    assert start(other, anyway="on").status_code == 303
    assert started[-1] == (tmp_path / "runs" / "other", True)
    assert {one.name for one in (tmp_path / "runs").iterdir()} == {"quickstart", "other"}


def test_a_new_run_begins_from_what_there_is_under_a_free_name(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    folder = make_run(tmp_path, "quickstart")
    (folder / "recipe.yaml").write_text(Recipe.load("quickstart").to_yaml(), "utf-8")
    assert "name: quickstart-2\n" in client.get("/new?from=quickstart").text
    assert "name: quickstart-2\n" in client.get("/new?run=quickstart").text
    assert client.get("/new?from=nothing").status_code == 404
    assert "Put files into the box" in client.get("/new?from=quickstart&own=1").text
    (tmp_path / "recipe.yaml").write_text("name: mine\nteacher: <b>\n", "utf-8")
    page = client.get("/new").text
    assert "teacher: &lt;b&gt;" in page
    assert "the project&#39;s own recipe" in page


def test_every_builtin_recipe_opens(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    for name in builtin_recipes():
        assert client.get(f"/new?from={name}").status_code == 200


def test_a_studio_does_not_show_its_secrets_in_its_repr(tmp_path: Path) -> None:
    studio = Studio(tmp_path)
    assert studio.token not in repr(studio)


def test_the_teachers_address_is_asked_and_no_key_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-secret-0123456789"
    monkeypatch.setenv("OWN_KEY", secret)
    client, _ = browser(tmp_path)
    recipe = yaml.safe_load(Recipe.load("quickstart").to_yaml())
    with MockEndpoint({secret: Limits()}) as server:
        endpoint = {"base_url": server.url, "keys": ["OWN_KEY", "NO_KEY"]}
        recipe["generate"] |= {"teacher": "openai:fake", "endpoint": endpoint}
        text = yaml.safe_dump(recipe)
        said = client.post("/new/try", json={"yaml": text}).text
        shown = client.post("/new/read", json={"yaml": text}).json()["form"]
    assert "OWN_KEY: it answers" in said
    assert "NO_KEY" in said
    assert secret not in said + shown
    assert '<div class="field" id="try-teacher">' in shown
    assert "generate.budget.money" in shown  # the cap stands open beside it
    local = Recipe.load("quickstart").to_yaml()
    assert "on this machine" in client.post("/new/try", json={"yaml": local}).text
    assert (
        'id="try-teacher" hidden' in client.post("/new/read", json={"yaml": local}).json()["form"]
    )


def test_another_recipe_keeps_the_files_that_were_put_in(tmp_path: Path) -> None:
    client, studio = browser(tmp_path)
    (studio.project / "documents").mkdir()
    for name in ("a.md", "b, c.md"):
        (studio.project / "documents" / name).write_text("# Kept\n\nThe bell rings at six.")

    def sources(**query: Any) -> list[str]:
        page = client.get("/new", params=query).text
        text = html.unescape(page.split('name="yaml"')[1].split(">", 1)[1].split("</textarea>")[0])
        found: list[str] = yaml.safe_load(text)["ingest"]["sources"]
        return found

    begun = {"from": "chat-gguf-local"}
    assert sources(**begun, use=["documents"]) == ["documents"]
    assert sources(**begun, use=["documents/b, c.md"]) == ["documents/b, c.md"]
    sample = sources(**begun)
    assert sample != ["documents"]
    assert (
        sources(**begun, use=["sample:handbook.pdf", "/etc/passwd", "documents/gone.md"]) == sample
    )
    (studio.project / "recipe.yaml").write_text(Recipe.load("quickstart").to_yaml())
    assert sources(**{"from": "recipe.yaml"}, use=["documents"]) != ["documents"]  # its own
