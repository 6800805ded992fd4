"""`potstill eval` and `potstill compare` on two finished runs, by the command line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mock_endpoint import Limits, MockEndpoint
from typer.testing import CliRunner

from potstill import pipeline
from potstill.cli import app
from potstill.errors import InputError, PotstillError, TeacherError, UsageError
from potstill.inference.base import Request
from potstill.recipe import Recipe

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_student: Callable[..., Path]) -> Path:
    """Two runs that differ in how answers are chosen; everything before is shared."""
    from potstill.sample import sample_path

    root = tmp_path_factory.mktemp("two-runs")
    text = sample_path("handbook.md").read_text("utf-8")
    (root / "tiny").mkdir()
    teacher = make_student(root / "tiny", text=text, vocabulary=800, layers=4, positions=1024)
    (root / "notes.md").write_text(text[:6000], "utf-8")
    measured = {
        "max_examples": 4, "answer_tokens": 6, "resamples": 100, "speed_rounds": 1,
        "speed_tokens": 2,
    }  # fmt: skip
    recipe = {
        "name": "greedy",
        "teacher": str(teacher),
        "ingest": {"sources": ["notes.md"], "chunk_tokens": 160, "overlap_tokens": 0},
        "generate": {"backend": "fake", "pairs_per_chunk": 3},
        "distill": {
            "student": {"drop_layers": 1, "calibration_tokens": 64}, "epochs": 1,
            "step_tokens": 512, "micro_tokens": 1024, "sequence_tokens": 512, "validations": 1,
        },
        "evaluate": measured | {"speed_parallel": [2]},
        "export": {**measured, "max_examples": 2, "quantisations": ["q8_0"]},
    }  # fmt: skip
    pipeline.run(Recipe.from_dict(recipe), root)
    drawn = measured | {"speed_parallel": [2], "decoding": {"temperature": 1.0}}
    pipeline.run(Recipe.from_dict(recipe | {"name": "drawn", "evaluate": drawn}), root)
    return root


def command(project: Path, *arguments: str) -> str:
    made = CliRunner().invoke(app, [*arguments, "--project", str(project)], catch_exceptions=False)
    assert made.exit_code == 0
    return made.stdout


def refused(project: Path, *arguments: str) -> PotstillError:
    with pytest.raises(PotstillError) as caught:
        command(project, *arguments)
    return caught.value


def test_a_report_stands_in_four_formats_with_keys_and_digests(project: Path) -> None:
    this = pipeline.open_run("greedy", project)
    report = this.report
    assert report["contamination"]["rows"] == report["examples"]["evaluated"]
    key = this.record["stages"]["evaluate"]["key"]
    rows = list(csv.DictReader((this.folder / "report.csv").read_text("utf-8").splitlines()))
    by_figure = {(row["model"], row["metric"]): row for row in rows}
    f1 = report["models"]["distilled"]["metrics"]["f1"]
    assert float(by_figure["distilled", "f1"]["value"]) == f1["value"]
    assert by_figure["distilled", "f1"]["key"] == key
    assert by_figure["gguf-f16", "disk_bytes"]["stage"] == "export"
    text = (this.folder / "report.md").read_text("utf-8")
    assert key[:16] in text
    assert "## How many rows it takes" in text
    page = (this.folder / "report.html").read_text("utf-8")
    assert key[:16] in page
    assert "<script" not in page
    (index,) = report["model_index"]
    assert {one["type"] for one in index["results"][0]["metrics"]} >= {"f1", "exact_match", "kl"}


def test_stored_answers_are_scored_again_to_the_same_digits(project: Path) -> None:
    found = json.loads(command(project, "eval", "greedy", "--json"))
    report = pipeline.open_run("greedy", project).report
    for name in ("teacher", "distilled"):
        metrics = report["models"][name]["metrics"]
        for metric in ("f1", "em", "chrf", "rougeL", "bleu"):
            assert found["models"][name]["metrics"][metric] == metrics[metric]
    assert "Answer F1" in command(project, "eval", "greedy")
    said = pipeline.open_run("drawn", project).artifact("evaluate").path("predictions.jsonl")
    assert "Distilled" in command(project, "eval", "--predictions", str(said))


def test_runs_are_compared_in_four_formats(project: Path) -> None:
    shown = command(project, "compare", "greedy", "drawn", "--by", "em")
    assert "greedy" in shown
    folder = project / "compare"
    assert sorted(path.name for path in folder.iterdir()) == [
        "compare.csv", "compare.html", "compare.json", "compare.md",
    ]  # fmt: skip
    found = json.loads((folder / "compare.json").read_text())
    assert found["by"] == "em"
    assert found["pairs"][0]["rows"] == 4
    assert isinstance(refused(project, "compare", "greedy"), InputError)


def test_a_judge_is_asked_and_what_it_said_is_kept(project: Path) -> None:
    judged = ("eval", "greedy", "--judge", "fake")
    found = json.loads(command(project, *judged, "--graded", "--limit", "3", "--json"))
    assert found["grades"]["distilled"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    folder = project / "runs" / "greedy" / "judge"
    assert len((folder / "grades.jsonl").read_text().splitlines()) == 12
    error = refused(project, *judged)  # it always says the first
    assert isinstance(error, TeacherError)
    assert "never decides" in error.message
    assert not (folder / "votes.jsonl").exists()
    votes = folder / "human.jsonl"
    lines = [
        {"row": f"r{n}", "models": ["distilled", "teacher"], "swapped": n > 1,
         "winner": "distilled", "judge": "human:anna"}
        for n in range(4)
    ]  # fmt: skip
    votes.write_text("\n".join(map(json.dumps, lines)))
    said = json.loads(command(project, "eval", "--votes", str(votes), "--json"))
    assert said["wins"] == {"distilled": 4, "teacher": 0}
    assert said["first_shown"] == 0.5


def test_an_outside_suite_is_run_on_teacher_and_student(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = ("eval", "greedy", "--suite", "lm-eval:arc_easy")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert refused(project, *suite).exit_code == 6
    module = ModuleType("lm_eval")
    module.__spec__ = ModuleSpec("lm_eval", None)
    folders = []

    def simple_evaluate(**arguments: Any) -> Any:
        folders.append(Path(arguments["model_args"]["pretrained"]))
        return {"results": {"arc_easy": {"acc,none": 0.25, "acc_stderr,none": 0.01}}}

    module.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    found = json.loads(command(project, *suite, "--json"))
    assert list(found["models"]) == ["teacher", "distilled"]
    assert all((folder / "config.json").exists() for folder in folders)
    assert (project / "runs/greedy/suites/arc_easy.json").exists()


def test_a_file_of_questions_is_answered_by_teacher_and_student(project: Path) -> None:
    questions = [
        {"id": f"q{n}", "question": f"What is said of part {n}?", "answers": [{"text": "teal"}]}
        for n in range(3)
    ]
    paragraph = {"context": "The part is painted teal. " * 3, "qas": questions}
    long = {"context": "Very long. " * 900, "qas": [{**questions[0], "id": "long"}]}
    file = project / "asked.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph, long]}]}))
    found = json.loads(command(project, "eval", "greedy", "--suite", str(file), "--json"))
    assert list(found["models"]) == ["teacher", "distilled"]
    assert found["examples"]["evaluated"] == 3
    assert found["examples"]["too_long"] == 1
    assert "teacher_minus_distilled" in found["differences"]
    folder = project / "runs/greedy/suites"
    assert json.loads((folder / "asked.json").read_text()) == found
    said = folder / "asked.predictions.jsonl"
    rows = ("eval", "--predictions", str(said), "--golds", str(file), "--json")
    again = json.loads(command(project, *rows))  # the long row has no answer there
    assert again["examples"]["missing"] == {"teacher": 1, "distilled": 1}
    file.write_text(json.dumps([{"id": "1", "answer": "x"}, {"id": "2", "answer": "x"}]))
    assert "no question" in refused(project, "eval", "greedy", "--suite", str(file)).message


def test_the_rows_of_a_run_are_put_again_as_they_were_put_in_the_run(project: Path) -> None:
    this = pipeline.open_run("greedy", project)
    rows = this.artifact("curate").path("test.jsonl")
    command(project, "eval", "greedy", "--suite", str(rows), "--json")
    again = (this.folder / "suites/test.predictions.jsonl").read_text().splitlines()
    said = {(row["id"], row["model"]): row["answer"] for row in map(json.loads, again)}
    before = this.artifact("evaluate").path("predictions.jsonl").read_text().splitlines()
    first = {(row["id"], row["model"]): row["answer"] for row in map(json.loads, before)}
    shared = said.keys() & first.keys()
    assert len(shared) == 8
    assert {one: said[one] for one in shared} == {one: first[one] for one in shared}


def test_a_judge_behind_an_address_is_asked_with_its_key(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_is_better(request: Request) -> str:
        asked = request.messages[0].content
        first, _, second = asked.partition("Answer A: ")[2].partition("Answer B: ")
        longer = len(first) > len(second.partition("Which answer")[0])
        return json.dumps({"reason": "it says more", "verdict": "A" if longer else "B"})

    judged = ("eval", "greedy", "--judge", "openai:big", "--limit", "3")
    assert "behind an address" in refused(project, *judged).message
    monkeypatch.setenv("JUDGE_KEY", "sk-judge-0123456789")
    with MockEndpoint({"sk-judge-0123456789": Limits()}, text=first_is_better) as server:
        there = (*judged, "--judge-url", server.url)
        found = json.loads(command(project, *there, "--judge-key", "JUDGE_KEY", "--json"))
        asked = len(server.seen)
        assert found["judge"] == "openai:big"
        assert sum(found["wins"].values()) > 0
        assert asked == 2 * (found["rows"] - found["identical"])
        command(project, *there, "--judge-key", "JUDGE_KEY")
        assert len(server.seen) == asked  # what was said once is not paid again
    folder = project / "runs/greedy/judge"
    assert "sk-judge" not in "".join(one.read_text() for one in folder.rglob("*.json*"))
    (folder / "votes.jsonl").unlink()  # of other tests it is none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "What is to be scored"),
        (["eval", "greedy", "--predictions", "x.json"], "not both"),
        (["eval", "greedy", "--golds", "x.json"], "belongs to --predictions"),
        (["eval", "greedy", "--graded"], "belong to --judge"),
        (["eval", "greedy", "--judge", "fake", "--suite", "lm-eval:x"], "Choose one"),
        (["eval", "greedy", "--judge", "fake", "--pair", "teacher"], "names no two models"),
        (["eval", "greedy", "--suite", "helm:x"], "is no suite"),
        (["eval", "greedy", "--limit", "3"], "belong to --judge and --suite"),
        (["eval", "greedy", "--pair", "distilled,teacher"], "belongs to --judge and --votes"),
        (["eval", "greedy", "--votes", "x.jsonl"], "not both"),
        (["eval", "greedy", "--judge-url", "http://x/v1"], "belong to --judge"),
        (["eval", "greedy", "--judge", "fake", "--judge-key", "K"], "belong to a judge openai:"),
        (["eval", "greedy", "--judge", "openai:"], "names no model"),
        (["eval", "greedy", "--judge", "openai:m", "--judge-url", "ftp://x"], "http:// or https"),
    ],
)
def test_a_wrong_command_is_one_clear_error(
    project: Path, arguments: list[str], message: str
) -> None:
    error = refused(project, *arguments)
    assert isinstance(error, UsageError)
    assert message in error.message


def test_a_file_that_is_not_there_is_one_clear_error(project: Path) -> None:
    for arguments in (
        ["eval", "--predictions", "none.json"],
        ["eval", "--votes", "none.jsonl"],
        ["eval", "greedy", "--judge", "fake", "--rubric", "none.txt"],
    ):
        assert "Cannot read none." in refused(project, *arguments).message


def test_a_judge_of_a_model_without_answers_is_told_which_there_are(project: Path) -> None:
    error = refused(project, "eval", "greedy", "--judge", "fake", "--pair", "distilled,gpt")
    assert "holds no answers of gpt" in error.message
    assert "finetuned" in error.hint
