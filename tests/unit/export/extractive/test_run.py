"""The export stage of spans: safetensors and ONNX, read back as they will be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from span_models import save_span_model
from span_runs import SpanRun

from potstill import SpanReader
from potstill.core.files import read_json, write_json
from potstill.errors import InputError, ModelError
from potstill.export.extractive import SpanExportConfig
from potstill.export.extractive import run as stage
from potstill.export.extractive.measure import recommended
from potstill.models.spans.reader import ReaderSettings

METRIC = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}
MODEL = {
    "parameters": 1000, "disk_bytes": 4000, "peak_memory_bytes": 10**6, "questions_per_second": 9.0,
    "answer_s": 0.1, "metrics": {"f1": METRIC, "em": METRIC, "marked_kl": METRIC},
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[SpanRun, Path]:
    bench = SpanRun(tmp_path_factory.mktemp("export") / "run")
    folder = save_span_model(bench.inputs["distill"].path("models") / "distilled", spread=0.4)
    ReaderSettings(40, 8).save(folder)
    names = ("teacher", "undistilled", "distilled")
    results = {"models": dict.fromkeys(names, MODEL), "settings": {"no_answer_threshold": 1.5}}
    write_json(bench.inputs["evaluate"].path("results.json"), results)
    return bench, bench.run("export", stage.run, config())


def config(**fields: Any) -> SpanExportConfig:
    small = {"max_examples": 4, "resamples": 100, "speed_rounds": 1, "int8_min_agreement": 0.2}
    return SpanExportConfig.model_validate({**small, **fields})


def test_all_files_are_there_and_answer_alike(exported: tuple[SpanRun, Path]) -> None:
    _, data = exported
    names = sorted(one.name for one in data.iterdir())
    assert names == ["README.md", "export.json", "model-int8.onnx", "model.onnx", "safetensors"]
    passage = "the lamp in the south tower is red and the keeper notes the time"
    torch_reader = SpanReader(data / "safetensors")
    assert torch_reader.settings == ReaderSettings(40, 8, 30, 1.5)
    onnx = SpanReader(data / "safetensors", onnx=data / "model.onnx")
    one, other = (r.answer("where is the red lamp", passage) for r in (torch_reader, onnx))
    assert (one.start, one.end) == (other.start, other.end)
    assert other.score == pytest.approx(one.score, rel=1e-3)


def test_export_json_has_what_every_report_reads(exported: tuple[SpanRun, Path]) -> None:
    _, data = exported
    found = read_json(data / "export.json")
    assert set(found["models"]) == {"onnx-fp32", "onnx-int8"}
    for model in found["models"].values():
        assert model["metrics"]["f1"]["n"] == 4
        assert model["peak_memory_bytes"] > 1e6
        assert model["questions_per_second"] > 0
    assert found["models"]["onnx-fp32"]["f1_difference"]["value"] == 0
    assert [hop["to"] for hop in found["chain"]] == ["onnx-fp32", "onnx-int8"]
    assert all(hop["holds"] for hop in found["chain"])
    assert found["parity"][0]["prompts"] == 4
    assert found["recommended"]["file"] in ("model.onnx", "model-int8.onnx")


def test_the_card_names_files_and_figures(exported: tuple[SpanRun, Path]) -> None:
    card = (exported[1] / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    for words in ("`model-int8.onnx`: for ONNX Runtime", "questions/s", "potstill.SpanReader"):
        assert words in card


def test_a_file_that_lost_more_than_it_may_fails_the_run(exported: tuple[SpanRun, Path]) -> None:
    bench, _ = exported
    with pytest.raises(ModelError, match=r"model-int8\.onnx lost more than it may"):
        bench.run("export", stage.run, config(int8_max_kl=1e-12))


def test_the_smallest_file_that_is_not_proven_worse_is_taken() -> None:
    def model(size: int, high: float, f1: float) -> dict[str, Any]:
        return {
            "disk_bytes": size, "f1_difference": {"high": high}, "metrics": {"f1": {"value": f1}},
        }  # fmt: skip

    assert recommended({"a": model(9, 0.0, 0.5), "b": model(3, 0.1, 0.4)})[0] == "b"
    assert recommended({"a": model(9, 0.0, 0.5), "b": model(3, -0.1, 0.4)})[0] == "a"
    key, why = recommended({"a": model(9, -0.2, 0.5), "b": model(3, -0.1, 0.4)})
    assert key == "a"
    assert "every file" in why


def test_too_few_rows_are_one_line(exported: tuple[SpanRun, Path]) -> None:
    bench, _ = exported
    test = bench.inputs["curate"].path("test.jsonl")
    kept = test.read_text()
    test.write_text(kept.splitlines(keepends=True)[0])
    try:
        with pytest.raises(InputError, match="holds 1 rows"):
            bench.run("export", stage.run, config())
    finally:
        test.write_text(kept)
