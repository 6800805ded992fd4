"""The whole loop with a tiny student: feedback, review, improvement, gate, promotion, way back."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill import pipeline
from potstill.core.files import read_records
from potstill.curate.prepared import FEEDBACK
from potstill.errors import InputError, RecipeError, StoreError, UsageError
from potstill.generate import PromptConfig, student_turn
from potstill.improve import ImproveConfig, improve, prepare, promote, rollback, versions_of
from potstill.pipeline import Run
from potstill.recipe import Recipe
from potstill.records import Chunk, Example
from potstill.sample import sample_path
from potstill.serve.feedback import FeedbackStore
from potstill.serve.review import review

pytestmark = pytest.mark.timeout(1800)  # two runs of seven processes each, and a third begun
FEW = ImproveConfig(replay=1.0, fewest=6)
SHORT = ["distill.max_tokens=1500", "distill.epochs=1", "distill.validations=1"]


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Run:
    """A finished run, with a student that says nonsense."""
    project = tmp_path_factory.mktemp("project")
    text = sample_path("handbook.md").read_text("utf-8")
    (project / "notes.md").write_text(text[:6000], "utf-8")
    measured = {
        "answer_tokens": 4,
        "resamples": 100,
        "speed_rounds": 1,
        "speed_tokens": 2,
    }
    recipe = {
        "name": "small",
        "teacher": str(tiny_teacher),
        "ingest": {"sources": ["notes.md"], "chunk_tokens": 160, "overlap_tokens": 0},
        "generate": {"backend": "fake", "pairs_per_chunk": 3},
        "distill": {
            "student": {"drop_layers": 1, "calibration_tokens": 64, "refit": False},
            "epochs": 1,
            "step_tokens": 512,
            "micro_tokens": 1024,
            "sequence_tokens": 512,
            "validations": 1,
        },
        "evaluate": measured | {"max_examples": 4, "speed_parallel": []},
        "export": measured | {"max_examples": 2, "quantisations": ["q8_0"]},
    }
    return pipeline.run(Recipe.from_dict(recipe), project)


def say(run: Run, numbers: range) -> list[str]:
    """Feedback as the service keeps it: corrected answers about the run's passages."""
    chunks = list(read_records(run.artifact("ingest").path("chunks.jsonl"), Chunk))
    prompt = PromptConfig.model_validate(run.record["recipe"]["generate"]["prompt"])
    made = []
    with closing(FeedbackStore(run.folder / "serve" / "feedback.sqlite")) as store:
        for number in numbers:
            chunk = chunks[number % len(chunks)]
            words = chunk.text.split()
            question = f"Which word stands at place {number} of that page?"
            content = student_turn(prompt, chunk.text, question)
            cited = {
                "source": chunk.source, "pages": list(chunk.pages), "document": chunk.document,
                "chunk": chunk.id, "start": chunk.start, "end": chunk.end, "text": chunk.text,
            }  # fmt: skip
            made.append(
                store.add(
                    response=f"chatcmpl-{number}",
                    key="",
                    model="small:documents",
                    thumb="down",
                    correction=words[number % len(words)].strip(".,;:()#*") or "none",
                    messages=[{"role": "user", "content": content}],
                    answer="?",
                    citations=[cited],
                )
            )
    return made


@pytest.mark.whole
def test_feedback_becomes_a_version_that_serves_and_the_way_back(finished: Run) -> None:
    folder, project = finished.folder, Path(finished.record["project"])
    store = folder / "serve" / "feedback.sqlite"
    with pytest.raises(InputError, match="no accepted feedback on small yet"):
        improve(finished, FEW)
    ids = say(finished, range(16))
    with pytest.raises(InputError, match="16 rows are not accepted"):
        improve(finished, FEW)
    review(store, ids[:3], "accepted")
    with pytest.raises(InputError, match="3 accepted questions are fewer than the 6"):
        improve(finished, FEW)
    review(store, ids, "accepted")
    with pytest.raises(RecipeError, match=r"curate\.prepared cannot be changed"):
        prepare(finished, FEW, overrides=["curate.prepared=x"])

    prepared = prepare(finished, FEW, overrides=SHORT)
    assert prepared.name == "small-2"
    steps = {step.name: step for step in pipeline.plan(Recipe.load(prepared.file), project)}
    assert [steps[name].action for name in ("ingest", "generate", "curate")] == [
        "reuse",
        "reuse",
        "run",
    ]
    again = prepare(finished, FEW, overrides=SHORT)  # what was begun goes on
    assert (again.name, again.about) == (prepared.name, prepared.about)

    made = improve(finished, FEW, overrides=SHORT)
    assert made.run.folder.name == "small-2"
    old = {row.id for row in read_records(finished.artifact("curate").path("test.jsonl"), Example)}
    tested = list(read_records(made.run.artifact("curate").path("test.jsonl"), Example))
    fed = {row.id for row in tested if row.provenance.prompt == FEEDBACK}
    assert fed <= set(prepared.about["target"])
    before = {
        line["id"]: line["answer"]
        for line in map(json.loads, _predictions(finished))
        if line["model"] == "distilled"
    }
    assert {row.id for row in tested} - fed == set(before) <= old  # the rows that were measured
    current = {
        line["id"]: line
        for line in map(json.loads, _predictions(made.run))
        if line["model"] == "undistilled"
    }
    assert {name: current[name]["answer"] for name in before} == before  # it is that student
    assert made.gate["rows"] == {"kept": len(before), "target": len(fed)}
    assert "served before" in " ".join(made.run.report["notes"])
    assert versions_of(finished).read()["candidates"]["small-2"]["gate"] == made.gate

    with pytest.raises(UsageError, match="itself a candidate for small"):
        improve(made.run, FEW)
    now = promote(finished, "small-2", force=True, by="ada")
    assert now.version == versions_of(finished).current().version == "small-2"
    with pytest.raises(UsageError, match="small-2 serves, or rollback leads to it"):
        prepare(finished, FEW, name="small-2")
    with pytest.raises(InputError, match="0 are held out that no version was judged by"):
        prepare(finished, FEW)

    # The next one begins with what serves now, and is judged by new feedback alone.
    review(store, say(finished, range(16, 30)), "accepted")
    third = prepare(finished, FEW, overrides=SHORT)
    assert (third.name, third.origin) == ("small-3", "small-2")
    assert str(made.run.artifact("export").folder) in str(third.recipe.distill.student.model)
    assert not set(third.about["target"]) & set(prepared.about["held_out"])
    assert set(prepared.about["held_out"]) <= set(third.about["held_out"])
    assert rollback(finished).version == "small"


def _predictions(run: Run) -> list[str]:
    file = run.artifact("evaluate").path("predictions.jsonl")
    return [line for line in file.read_text("utf-8").splitlines() if line.strip()]


@pytest.mark.whole
def test_the_commands(finished: Run) -> None:
    project = ["--project", finished.record["project"]]
    say(finished, range(100, 101))
    listed = json.loads(potstill("feedback", "small", "--json", "--state", "new", *project).stdout)
    identity = listed[-1]["id"]
    done = potstill(
        "feedback", "small", "--accept", identity, "--answer", "it", "--by", "ada", *project
    )
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout
    assert potstill("feedback", "small", "--accept", "fb-x", *project).returncode == 2
    assert potstill("feedback", "small", "--answer", "x", *project).returncode == 2
    refused = potstill("improve", "small", "--fewest", "5000", *project)
    assert refused.returncode == 3
    assert "are fewer than the 5000" in refused.stderr
    assert potstill("improve", "small", "--held-out", "0.95", *project).returncode == 2
    table = potstill("versions", "small", *project)
    assert "serves" in table.stdout
    assert json.loads(potstill("versions", "small", "--json", *project).stdout)["serving"]
    none = potstill("promote", "small", "small", *project)
    assert none.returncode == 2
    assert "Traceback" not in none.stderr


def test_an_unfinished_run_is_refused(tmp_path: Path, small_recipe: dict[str, Any]) -> None:
    (tmp_path / "notes.md").write_text(sample_path("handbook.md").read_text("utf-8")[:3000])
    run = pipeline.run(Recipe.from_dict(small_recipe), tmp_path, until="ingest")
    with pytest.raises(StoreError, match="has no report yet"):
        improve(run)
