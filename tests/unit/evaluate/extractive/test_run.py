"""The evaluate stage of spans: figures, predictions and the report, with tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from span_models import save_span_model
from span_runs import SpanRun

from potstill.core.files import read_json, write_json
from potstill.errors import InputError, ModelError
from potstill.evaluate import comparison, speed
from potstill.evaluate.answer_scores import squad_v2
from potstill.evaluate.extractive import SpanEvaluateConfig
from potstill.evaluate.extractive import run as stage
from potstill.evaluate.extractive.answering import Answered, Writer
from potstill.evaluate.extractive.scores import nearness, scores_of
from potstill.evaluate.report import build_report
from potstill.models.load import load_model, load_tokenizer
from potstill.models.spans.marks import Marks
from potstill.models.spans.reader import ReaderSettings, SpanReader
from potstill.models.spans.rows import SpanRow, span_rows
from potstill.records import Chunk, Example


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpanRun:
    # collecting all of torch's objects takes longer than these models
    monkeypatch.setattr(speed, "release_memory", lambda: None)
    made = SpanRun(tmp_path / "run")
    models = made.inputs["distill"].path("models")
    for seed, name in enumerate(("undistilled", "distilled", "finetuned")):
        folder = save_span_model(models / name, seed=seed, spread=0.4)
        ReaderSettings(40, 8).save(folder)
    strong = save_span_model(tmp_path / "strong", seed=9, spread=0.4)
    signal = {"source": "span_model", "model": str(strong)}
    write_json(made.inputs["distill"].path("signal.json"), signal)
    return made


def config(**fields: Any) -> SpanEvaluateConfig:
    small = {"resamples": 200, "speed_rounds": 2, "speed_questions": 2, "answer_tokens": 4}
    return SpanEvaluateConfig.model_validate({**small, **fields})


def predictions(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / "predictions.jsonl").read_text().splitlines()]


def test_every_model_is_measured_on_the_same_rows(bench: SpanRun, tiny_folder: Path) -> None:
    data = bench.run("evaluate", stage.run, config(teacher=str(tiny_folder)))
    results = read_json(data / "results.json")
    assert list(results["models"]) == ["teacher", "undistilled", "finetuned", "distilled"]
    for name, model in results["models"].items():
        assert model["metrics"]["f1"]["n"] == 8
        assert set(model["by_kind"]) == {"answer", "no answer"}
        assert model["parameters"] > 0
        assert model["questions_per_second"] > 0 < model["answer_s"] <= model["answer_p95_s"]
        near = {"marked_kl", "same_span"} <= set(model["metrics"])
        assert near == (name != "teacher")
    assert "marked_kl" in results["differences"]["distilled_minus_finetuned"]
    said = predictions(data)
    assert len(said) == 4 * 8
    chunks = {one.id: one.text for one in _chunks(bench)}
    for row in said:
        if row["start"] is not None:
            passage = chunks[f"c{int(row['id'][4:]) % 100}"]
            assert passage[row["start"] : row["end"]] == row["answer"]
        f1, em = squad_v2(row["answer"], row["golds"])
        if row["model"] != "teacher":
            assert (row["f1"], row["em"]) == (f1, em)


def test_a_killed_stage_goes_on_where_it_was(
    bench: SpanRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.run("evaluate", stage.run, config(measure_teacher=False))
    first = read_json(data / "results.json")
    (data / "results.json").unlink()

    def none(*_: object) -> None:
        raise AssertionError("a finished model was asked again")

    monkeypatch.setattr(SpanReader, "answers", none)
    bench.run("evaluate", stage.run, config(measure_teacher=False))
    assert read_json(data / "results.json") == first
    assert "teacher" not in first["models"]
    assert "marked_kl" not in first["models"]["distilled"]["metrics"]


@pytest.mark.whole
def test_the_threshold_decides_between_no_answer_and_a_guess(bench: SpanRun) -> None:
    always = bench.run(
        "evaluate", stage.run, config(measure_teacher=False, no_answer_threshold=None)
    )
    assert all(row["answer"] for row in predictions(always))
    for file in (bench.root / "evaluate" / "work").iterdir():
        file.unlink()
    never = bench.run(
        "evaluate", stage.run, config(measure_teacher=False, no_answer_threshold=-99.0)
    )
    assert not any(row["answer"] for row in predictions(never))
    kinds = read_json(never / "results.json")["models"]["distilled"]["by_kind"]
    assert kinds["no answer"]["f1"]["value"] == 1.0
    assert kinds["answer"]["f1"]["value"] == 0.0


def test_whoever_writes_that_there_is_no_answer_gives_none(bench: SpanRun) -> None:
    rows = _rows(bench)
    none = [row for row in rows if row.start is None][:1]
    own, known, wrong = (
        scores_of(none, [Answered(text)], None)[0].answer
        for text in ("The passage does not say.", "I do not know.", "north")
    )
    assert (own.f1, own.em, own.refused) == (1.0, 1.0, 1.0)
    assert (known.f1, known.refused) == (1.0, 1.0)
    assert (wrong.f1, wrong.refused) == (0.0, 0.0)


def test_nearness_is_kl_of_the_marginals(bench: SpanRun) -> None:
    reader = SpanReader(bench.inputs["distill"].path("models") / "distilled")
    row = next(one for one in _rows(bench) if one.start is not None)
    assert row.start is not None and row.end is not None  # noqa: PT018 (for the type checker)
    marks = Marks(
        id=row.id, spans=((row.start, row.end),), log_p=(math.log(0.6),), none=math.log(0.2)
    )
    (found,) = nearness(reader, [row], [marks])
    ((windows, scored),) = reader.scored([(row.question, row.passage)])
    place = windows.tokens_of(row.start, row.end)
    assert place is not None
    spans = scored.spans.exp()
    start = float(spans[place[0]].sum())
    end = sum(
        float(spans[first, place[1] - first])
        for first in range(place[1] + 1)
        if place[1] - first < spans.shape[1]
    )
    none = math.exp(scored.none)
    kl = [0.75 * math.log(0.75 / side) + 0.25 * math.log(0.25 / none) for side in (start, end)]
    assert found.kl == pytest.approx(sum(kl) / 2, rel=1e-6)
    assert float(torch.tensor([start, none]).sum()) < 1.0


def test_written_answers_are_those_of_generate(bench: SpanRun, tiny_folder: Path) -> None:
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    rows = _rows(bench)[:3]
    said = Writer(model, tokenizer, answer_tokens=6, batch=2)(rows)
    for row, one in zip(rows, said, strict=True):
        messages = [turn.model_dump() for turn in row.example.turns[:-1]]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=6, do_sample=False)
        new = out[0, ids.input_ids.shape[1] :]
        assert one.text == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_the_report_has_what_spans_have(bench: SpanRun, tiny_folder: Path, tmp_path: Path) -> None:
    bench.run("evaluate", stage.run, config(teacher=str(tiny_folder)))
    folders = {name: one.folder / "data" for name, one in bench.inputs.items()}
    stages = {"evaluate": {"seconds": 1.0, "peak_memory_bytes": 10, "reused": False}}
    report = build_report(tmp_path, folders, stages, {"name": "spans", "task": "spans"}, {})
    page = (tmp_path / "report.html").read_text()
    assert "Same span as the teacher" in page
    assert "questions/s" in page
    assert "tokens/s" not in page
    assert "potstill ask spans" in page
    header, *rows = comparison.quality(report)
    assert header[1:] == ["KL", "same span %", "F1 %", "EM %"]
    assert len(rows) == 4
    assert comparison.sizes(report)[0][-1] == "questions/s"
    assert "questions" in " ".join(report["notes"])
    assert "Questions a second" in (tmp_path / "report.md").read_text()
    assert "questions_per_second" in (tmp_path / "report.csv").read_text()


def test_too_few_rows_and_no_student_are_one_line(bench: SpanRun) -> None:
    test = bench.inputs["curate"].path("test.jsonl")
    kept = test.read_text()
    test.write_text(kept.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="holds 1 rows whose answer stands"):
        bench.run("evaluate", stage.run, config(measure_teacher=False))
    test.write_text(kept)
    (bench.inputs["distill"].path("models") / "distilled" / "config.json").unlink()
    with pytest.raises(ModelError, match="left no student"):
        bench.run("evaluate", stage.run, config(measure_teacher=False))


def _chunks(bench: SpanRun) -> list[Chunk]:
    lines = bench.inputs["ingest"].path("chunks.jsonl").read_text().splitlines()
    return [Chunk.model_validate_json(line) for line in lines]


def _rows(bench: SpanRun) -> list[SpanRow]:
    lines = bench.inputs["curate"].path("test.jsonl").read_text().splitlines()
    examples = [Example.model_validate_json(line) for line in lines]
    return span_rows(examples, {one.id: one for one in _chunks(bench)}, "x")[0]
