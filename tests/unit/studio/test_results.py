"""Results: figures, answers row by row, downloads that stay in the run; studies; the chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from studio_runs import browser, make_run, write_events

from potstill.studio.results import files_of
from potstill.studio.runs import find_run


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


REPORT: dict[str, Any] = {
    "run": "made",
    "verdict": {"made": ["The student is <small>."], "claims": [], "open": []},
    "models": {
        "teacher": {"parameters": 10**8, "disk_bytes": 4 * 10**8, "tokens_per_second": 5.0,
                    "metrics": {"kl": figure(0.0), "f1": figure(0.8)}},
        "distilled": {"parameters": 5 * 10**7, "disk_bytes": 2 * 10**8, "tokens_per_second": 9.0,
                      "metrics": {"kl": figure(0.4), "f1": figure(0.6)}},
    },
}  # fmt: skip


def answer(identity: str, model: str, text: str, f1: float) -> str:
    row = {"id": identity, "model": model, "question": f"Q {identity}?", "golds": ["Tove"]}
    return json.dumps(row | {"answer": text, "f1": f1})


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    predictions = [
        answer("same", "teacher", "Tove", 1.0), answer("same", "distilled", "Tove", 1.0),
        answer("lost", "teacher", "Tove", 1.0), answer("lost", "distilled", "<i>Bram</i>", 0.0),
    ]  # fmt: skip
    folder = make_run(
        tmp_path, files={"evaluate": {"predictions.jsonl": predictions}}, report=REPORT
    )
    (folder / "export").mkdir()
    (folder / "export" / "student.gguf").write_bytes(b"GGUF" + bytes(5000))
    write_events(folder, [{"kind": "run_started", "stages": []}, {"kind": "run_finished"}])
    return folder


def test_the_page_shows_figures_and_first_the_rows_that_were_lost(
    finished: Path, tmp_path: Path
) -> None:
    client, _ = browser(tmp_path)
    page = client.get("/runs/made/results").text
    for words in ("The student is &lt;small&gt;.", "Distilled", "60.0", "0.400", "&lt;i&gt;Bram"):
        assert words in page
    assert page.index("Q lost?") < page.index("Q same?")
    assert page.count("<svg") >= 4  # KL and F1, against size and against speed
    home = client.get("/").text
    assert "60.0 %" in home
    assert "200 MB" in home


def test_each_file_says_what_it_is_and_what_goes_with_others_comes_last(
    finished: Path, tmp_path: Path
) -> None:
    _, studio = browser(tmp_path)
    weights = finished / "export" / "safetensors"
    weights.mkdir()
    for name in ("model.safetensors", "config.json"):
        (weights / name).write_text("{}")
    for name in ("README.md", "SERVING.md"):
        (finished / "export" / name).write_text("#")
    listed = [(one["path"], one["about"]) for one in files_of(find_run(studio, "made"))]
    assert listed[:5] == [
        ("export/README.md", "model card"),
        ("export/SERVING.md", "how the files are served"),
        ("export/safetensors/model.safetensors", "weights, for Transformers"),
        ("export/student.gguf", "for llama.cpp, Ollama, LM Studio"),
        ("export/safetensors/config.json", "goes with the weights"),
    ]


def test_only_results_can_be_downloaded(finished: Path, tmp_path: Path) -> None:
    client, studio = browser(tmp_path)
    listed = [one["path"] for one in files_of(find_run(studio, "made"))]
    assert listed == ["export/student.gguf", "report.json", "recipe.yaml"]
    got = client.get("/runs/made/files/export/student.gguf")
    assert got.content == (finished / "export" / "student.gguf").read_bytes()
    assert 'filename="made-student.gguf"' in got.headers["content-disposition"]
    (tmp_path / "secret.txt").write_text("secret")
    (finished / "export" / "way-out").symlink_to(tmp_path)
    (finished / "export" / "out.gguf").symlink_to(tmp_path / "secret.txt")
    (finished / "run.log").write_text("log")
    for path in ("run.json", "run.log", "events.jsonl", "../../secret.txt", "..%2f..%2fsecret.txt",
                 "export/../run.json", "export/way-out/secret.txt", "export/out.gguf",
                 "/etc/passwd"):  # fmt: skip
        answer = client.get(f"/runs/made/files/{path}")
        assert answer.status_code == 404, path
        assert "secret" not in answer.text.replace("secret.txt", "")


def test_without_a_report_the_page_says_when_it_comes(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    assert "No report yet" in client.get("/runs/made/results").text
    assert "has no report.html yet" in client.get("/runs/made/report").text
    assert "No finished run yet" in client.get("/compare").text
    (tmp_path / "runs" / "made" / "report.json").write_text("{damaged")
    assert "No report yet" in client.get("/runs/made/results").text
    (tmp_path / "runs" / "made" / "run.json").write_text("{damaged")
    for path in ("/", "/runs/made", "/runs/made/data", "/runs/made/chat"):
        assert client.get(path).status_code == 200


def test_a_run_whose_folder_was_deleted_is_said_in_words(tmp_path: Path) -> None:
    import shutil

    folder = make_run(tmp_path)
    client, _ = browser(tmp_path)
    shutil.rmtree(folder)
    answer = client.get("/runs/made")
    assert answer.status_code == 404
    assert "may have been moved or deleted" in answer.text


def test_a_comparison_needs_two_runs(finished: Path, tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    assert "One finished run so far" in client.get("/compare").text
    assert "at least two runs" in client.get("/compare/page?run=made&run=made").text


def test_studies_are_listed_with_their_pages(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    assert "No study yet" in client.get("/search").text
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.db").write_bytes(b"")
    assert "No trial has ended yet" in client.get("/search").text
    assert client.get("/search/mine").status_code == 404
    (folder / "report.html").write_text("<p>Trials</p>")
    (folder / "best.yaml").write_text("name: best\n")
    assert "best.yaml" in client.get("/search").text
    page = client.get("/search/mine")
    assert page.text == "<p>Trials</p>"
    assert "sandbox" in page.headers["content-security-policy"]
    assert client.get("/search/%2e%2e").status_code == 404


class FakeEngine:
    """Says what it was asked for; fails where it is told to."""

    started: list[str] = []  # noqa: RUF012

    def __init__(self, gguf: Path, sizes: Any) -> None:
        self.gguf, self.ready = gguf, True

    async def start(self) -> None:
        FakeEngine.started.append(self.gguf.name)

    async def stop(self) -> None:
        FakeEngine.started.remove(self.gguf.name)

    @property
    def upstream(self) -> FakeEngine:
        return self

    async def events(self, path: str, body: dict[str, Any]) -> Any:
        from potstill.serve.problems import unavailable

        content = body["messages"][0]["content"]
        if "break" in content:
            raise unavailable("The engine broke off.")
        pieces = ["again "] * 40 if "circle" in content else ["It is ", "<b>Tove</b>"]
        for piece in pieces:
            yield {"choices": [{"delta": {"content": piece}}]}
        yield {"choices": [], "usage": {"completion_tokens": len(pieces)}}


def said(client: TestClient, question: str, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "student.gguf", "question": question, **more}
    answer = client.post("/runs/made/chat", json=body)
    lines = [one for one in answer.text.split("\n\n") if one]
    return [json.loads(one.removeprefix("data: ")) for one in lines]


def test_a_finished_run_whose_files_are_gone_says_how_they_come_back(tmp_path: Path) -> None:
    make_run(tmp_path, report={"models": {}, "data": {}, "stages": {}})
    client, _ = browser(tmp_path)
    page = client.get("/runs/made/chat").text
    assert "The student's files are gone" in page
    assert "Once more from: export" in page


def test_the_chat_streams_and_says_from_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.serve import engine

    monkeypatch.setattr(engine, "LocalEngine", FakeEngine)
    folder = make_run(tmp_path)
    client, _ = browser(tmp_path)
    assert "No student to talk to yet" in client.get("/runs/made/chat").text
    (folder / "export").mkdir()
    (folder / "export" / "student.gguf").write_bytes(b"GGUF")
    assert "student.gguf" in client.get("/runs/made/chat").text
    first, second, last = said(client, "Who grades the kelp?")
    assert (first, second) == ({"piece": "It is "}, {"piece": "<b>Tove</b>"})
    assert last["done"].startswith("2 tokens")
    assert "From notes.md, page 3" in last["passage"]
    assert "from memory" in said(client, "Zzz?")[-1]["passage"]
    assert "passage" not in said(client, "Who grades the kelp?", passages=False)[-1]
    assert "repeating itself" in said(client, "circle")[-1]["done"]
    assert "broke off" in said(client, "break")[-1]["problem"]
    nobody = client.post("/runs/made/chat", json={"model": "../x.gguf", "question": "Q"})
    assert "has no model" in nobody.text
    empty = client.post("/runs/made/chat", json={"model": "student.gguf", "question": ""})
    assert empty.status_code == 422
    assert FakeEngine.started == ["student.gguf"]
