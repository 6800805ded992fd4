"""A run of task spans through the command line, with tiny models and ready-made rows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from span_models import WORDS, save_span_model
from span_runs import COLOURS, PLACES
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import UsageError
from potstill.improve import ImproveConfig, improve
from potstill.models.spans.rows import passages
from potstill.pipeline import open_run
from potstill.serve.feedback import FeedbackStore
from potstill.serve.review import review

# Two runs of seven processes each.
pytestmark = [pytest.mark.timeout(900), pytest.mark.whole]
RUN = CliRunner()


def article(number: int) -> dict[str, Any]:
    place, colour = PLACES[number % 2], COLOURS[number % 3]
    some = [WORDS[(number * step) % len(WORDS)] for step in (1, 5, 7, 11)]
    text = f"the lamp in the {place} tower is {colour} and {' '.join(some)}"
    asked = {"question": f"where is {' '.join(some[:3])}", "id": f"q{number}"}
    answer = {"text": place, "answer_start": text.index(place)}
    none = {"question": f"how many {' '.join(some[1:])}", "id": f"n{number}", "answers": []}
    questions = [{**asked, "is_impossible": False, "answers": [answer]}]
    questions += [{**none, "is_impossible": True}] if number % 2 == 0 else []
    return {"title": f"t{number}", "paragraphs": [{"context": text, "qas": questions}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_student: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    data = {"version": "v2.0", "data": [article(number) for number in range(24)]}
    (folder / "questions.json").write_text(json.dumps(data))
    make_student(folder / "teacher")
    save_span_model(folder / "encoder", head=False, spread=0.1)
    recipe = {
        "name": "marks",
        "task": "spans",
        "teacher": str(folder / "teacher"),
        "ingest": {"sources": ["questions.json"]},
        "curate": {"validation_fraction": 0.15, "test_fraction": 0.25},
        "distill": {
            "student": {"model": str(folder / "encoder")},
            "signal": {"starts": 2, "longest_words": 2},
            "epochs": 3, "learning_rate": 3e-3, "window_tokens": 40, "window_overlap": 8,
            "validations": 1, "precision": "fp32",
        },
        "evaluate": {
            "resamples": 100, "speed_rounds": 1, "speed_questions": 1, "answer_tokens": 3,
        },
        "export": {
            "resamples": 100, "speed_rounds": 1, "max_examples": 3, "int8_min_agreement": 0.0,
            "int8_max_kl": 5.0,
        },
    }  # fmt: skip
    (folder / "marks.yaml").write_text(yaml.safe_dump(recipe))
    done = invoke(folder, "run", str(folder / "marks.yaml"), "--threads", "1")
    assert done.exit_code == 0, done.output
    return folder


def invoke(project: Path, *words: str, **more: Any) -> Any:
    return RUN.invoke(app, [*words, "--project", str(project)], **more)


def test_the_run_has_its_report_and_its_files(project: Path) -> None:
    folder = project / "runs" / "marks"
    report = json.loads((folder / "report.json").read_text())
    assert report["task"] == "spans"
    assert set(report["models"]) == {
        "teacher", "undistilled", "finetuned", "distilled", "onnx-fp32", "onnx-int8",
    }  # fmt: skip
    assert report["models"]["distilled"]["by_kind"]["no answer"]["f1"]["n"] >= 1
    names = {one.name for one in (folder / "export").iterdir()}
    assert {"safetensors", "model.onnx", "model-int8.onnx", "README.md"} <= names
    assert report["verdict"]["made"]


def test_a_question_is_answered_from_a_text_or_from_the_runs_own(project: Path) -> None:
    text = "the lamp in the south tower is red and the keeper notes the time"
    (project / "passage.txt").write_text(text)
    asked = ("ask", "marks", "where is the red lamp")
    file = invoke(project, *asked, "--passage", str(project / "passage.txt"), "--json")
    found = json.loads(file.stdout)
    assert found["answer"] == text[found["start"] : found["end"]]
    assert 0 < found["score"] <= 1
    piped = invoke(project, *asked, "--passage", "-", "--json", input=text)
    assert json.loads(piped.stdout) == found
    onnx = invoke(project, *asked, "--passage", "-", "--file", "model.onnx", "--json", input=text)
    assert json.loads(onnx.stdout)["score"] == pytest.approx(found["score"], rel=1e-3)
    own = invoke(project, *asked)
    assert own.exit_code == 0
    assert "%" in own.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chat", "marks", "hello"), "marks answers and writes none"),
        (("export", "marks", "--kinds", "q8_0"), "files are safetensors and ONNX"),
        (("ask", "marks", "zebra xylophone"), "has a word of the question"),
        (("ask", "marks", "where", "--passage", "nowhere.txt"), "cannot be read"),
        (("ask", "marks", "where", "--file", "other"), "It has model-int8.onnx, model.onnx"),
        (("ask", "marks", "", "--passage", "-"), "The question is empty"),
        (("eval", "marks", "--suite", "lm-eval:boolq"), "no task of lm-eval"),
        (("eval", "marks", "--suite", "BARE"), "2 of 2 questions have no passage"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    project: Path, words: tuple[str, ...], said: str
) -> None:
    bare = project / "bare.jsonl"
    rows = [{"id": str(n), "question": "where", "answers": ["north"]} for n in range(2)]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tuple(str(bare) if word == "BARE" else word for word in words)
    done = invoke(project, *words, input="a text")
    assert done.exit_code != 0
    assert said in str(done.exception)


def test_every_other_command_knows_such_a_run(project: Path) -> None:
    for words in (("verify", "marks"), ("report", "marks"), ("eval", "marks"), ("export", "marks")):
        done = invoke(project, *words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    shown = invoke(project, "export", "marks").stdout
    assert "questions/s" in shown
    assert "model-int8.onnx" in shown
    again = invoke(project, "run", str(project / "marks.yaml"))
    assert again.exit_code == 0
    assert "potstill ask" in again.stdout.replace("\n", " ")
    plan = json.loads(invoke(project, "plan", str(project / "marks.yaml"), "--json").stdout)
    assert {one["action"] for one in plan["steps"]} == {"reuse"}


def test_the_stored_answers_score_as_they_did(project: Path) -> None:
    report = json.loads((project / "runs" / "marks" / "report.json").read_text())
    again = json.loads(invoke(project, "eval", "marks", "--json").stdout)
    for name in ("undistilled", "finetuned", "distilled"):
        for metric in ("f1", "em"):
            stored = report["models"][name]["metrics"][metric]
            assert again["models"][name]["metrics"][metric]["value"] == stored["value"]


def test_questions_from_outside_are_answered_too(project: Path) -> None:
    done = invoke(project, "eval", "marks", "--suite", str(project / "questions.json"), "--json")
    found = json.loads(done.stdout)
    assert found["examples"]["evaluated"] == 36
    assert found["models"]["distilled"]["metrics"]["f1"]["n"] == 36


def test_two_such_runs_are_set_side_by_side(project: Path) -> None:
    recipe = yaml.safe_load((project / "marks.yaml").read_text())
    recipe["name"] = "other"
    recipe["distill"]["signal"] = {"source": "none"}
    (project / "other.yaml").write_text(yaml.safe_dump(recipe))
    done = invoke(project, "run", str(project / "other.yaml"), "--threads", "1")
    assert done.exit_code == 0, done.output
    models = json.loads((project / "runs" / "other" / "report.json").read_text())["models"]
    assert "finetuned" not in models
    found = json.loads(invoke(project, "compare", "marks", "other", "--json").stdout)
    assert {one["run"] for one in found["entries"]} == {"marks", "other"}
    assert found["pairs"][0]["rows"] > 0


def test_ask_is_for_runs_that_mark(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "writes"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": {"name": "writes"}}))
    done = invoke(tmp_path, "ask", "writes", "where")
    assert isinstance(done.exception, UsageError)
    assert "potstill chat" in done.exception.hint


def test_it_is_served_and_stops(project: Path) -> None:
    command = [sys.executable, "-m", "potstill", "serve", "marks", "--project", str(project)]
    errors = project / "serve-errors.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen([*command, "--port", "0", "--threads", "1"], stderr=stderr) as process,
    ):
        try:
            end = time.monotonic() + 120
            while "Serving marks at " not in errors.read_text():
                assert process.poll() is None, errors.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            address = errors.read_text().split("Serving marks at ")[1].split("/v1")[0]

            def ask(**body: Any) -> httpx2.Response:
                return httpx2.post(f"{address}/v1/qa", json=body, trust_env=False, timeout=60)

            text = "the lamp in the north tower is red"
            known = {"question": "where is the red lamp", "no_answer_threshold": 1000.0}
            said = ask(**known, context=text).json()
            assert text[said["start"] : said["end"]] == said["answer"] != ""
            (cited,) = ask(**known).json()["citations"]
            assert cited["answer_end"] <= len(cited["text"])
            chat = httpx2.post(
                f"{address}/v1/chat/completions",
                json={"model": "marks", "messages": [{"role": "user", "content": "a"}]},
                trust_env=False,
            )
            assert chat.json()["error"]["code"] == "wrong_task"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    wrong = invoke(project, "serve", "marks", "--port", "0", "--engine", "http://127.0.0.1:9")
    assert isinstance(wrong.exception, UsageError)
    assert "marks answers" in str(wrong.exception)
    missing = invoke(project, "serve", "marks", "--port", "0", "--file", "other")
    assert "has no exported file other" in str(missing.exception)


@pytest.mark.slow
def test_a_student_that_marks_answers_learns_from_feedback(project: Path) -> None:
    run = open_run("marks", project)
    chunks = list(passages(run.artifact("ingest")).values())
    store = run.folder / "serve" / "feedback.sqlite"
    with closing(FeedbackStore(store)) as database:
        ids = [
            database.add(
                response=f"qa-{number}",
                key="",
                model="marks",
                thumb="down",
                correction=chunk.text.split()[6],  # the colour
                messages=[{"role": "user", "content": f"which {' '.join(chunk.text.split()[8:])}"}],
                answer="",
                citations=[chunk.model_dump(mode="json") | {"chunk": chunk.id}],
            )
            for number, chunk in enumerate(chunks)
        ]
    review(store, ids, "accepted")
    short = [f"distill.{field}" for field in ("epochs=1", "learning_rate=1e-3")]
    made = improve(run, ImproveConfig(replay=1.0), overrides=short, threads=1)
    assert made.run.task == "spans"
    assert set(made.run.report["models"]) >= {"undistilled", "distilled"}
    assert made.gate["rows"]["target"] == len(made.prepared.about["target"]) > 1
    assert made.gate["rows"]["kept"] > 1
    lines = made.run.artifact("evaluate").path("predictions.jsonl").read_text().splitlines()
    before = run.artifact("evaluate").path("predictions.jsonl").read_text().splitlines()
    said = {
        name: {row["id"]: row["answer"] for row in map(json.loads, some) if row["model"] == model}
        for name, some, model in (("then", before, "distilled"), ("now", lines, "undistilled"))
    }
    assert {row: said["now"][row] for row in said["then"]} == said["then"]  # the same student
