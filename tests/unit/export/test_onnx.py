"""A tiny BERT that marks answers, written as ONNX and read back by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from span_models import save_span_model

from potstill.errors import InputError, ModelError
from potstill.export import onnx
from potstill.export.chain import Allowance

PAIRS = [
    ("how many litres", "the boiler of unit holds litres"),
    ("what does the keeper", "the keeper notes the time in the log"),
    ("when", "the keeper notes the time"),
    ("what holds", "boiler boiler unit of the litres in the log notes"),
]


@pytest.fixture(scope="module")
def span_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_span_model(tmp_path_factory.mktemp("span") / "model")


@pytest.fixture(scope="module")
def written(span_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    target = tmp_path_factory.mktemp("onnx")
    bounds = {"fp32": Allowance(1e-6, 1.0), "int8": Allowance(0.5, 0.5)}  # far from sure, untrained
    return target, onnx.export_span_model(
        span_folder, target, PAIRS, allowances=bounds, resamples=100
    )


def test_both_files_are_written_and_near_to_pytorch(written: tuple[Path, Any]) -> None:
    target, found = written
    assert sorted(path.name for path in target.iterdir()) == ["model-int8.onnx", "model.onnx"]
    assert found["fp32"]["kl"]["value"] < 1e-6 < found["int8"]["kl"]["value"] < 0.5
    assert found["fp32"]["agreement"]["value"] == 1.0
    assert found["int8"]["pairs"] == 4
    for one in found.values():
        assert (target / one["file"]).stat().st_size == one["disk_bytes"]


def test_batches_of_any_size_and_length_run(span_folder: Path, written: tuple[Path, Any]) -> None:
    import onnxruntime

    model, tokenizer = onnx.load_span_model(span_folder), onnx.load_tokenizer(span_folder)
    session = onnxruntime.InferenceSession(written[0] / "model.onnx")
    for some in (PAIRS[:1], PAIRS[1:]):
        batch = onnx._encoded(model, tokenizer, some, 64)
        start, end = session.run(None, {name: one.numpy() for name, one in batch.items()})
        with torch.no_grad():
            ours = model(**batch)
        torch.testing.assert_close(ours.start_logits, torch.from_numpy(start), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.end_logits, torch.from_numpy(end), rtol=1e-4, atol=1e-4)


def test_a_file_that_is_not_the_model_any_more_gets_no_name(
    span_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx._write

    def another(model: Any, example: Any, out: Path) -> None:
        kept = model.qa_outputs.weight.detach().clone()
        with torch.no_grad():
            model.qa_outputs.weight.copy_(kept.flip(0))
            write(model, example, out)
            model.qa_outputs.weight.copy_(kept)

    monkeypatch.setattr(onnx, "_write", another)
    with pytest.raises(ModelError, match=r"PyTorch -> model\.onnx lost more than it may"):
        onnx.export_span_model(span_folder, tmp_path, PAIRS, resamples=100)
    assert list(tmp_path.iterdir()) == []


def test_a_stricter_bound_refuses_int8_and_keeps_fp32(span_folder: Path, tmp_path: Path) -> None:
    bounds = {"fp32": Allowance(1e-4, 0.99), "int8": Allowance(1e-12, 0.0)}
    with pytest.raises(ModelError, match=r"model-int8\.onnx lost more"):
        onnx.export_span_model(span_folder, tmp_path, PAIRS, allowances=bounds, resamples=100)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_decoder_and_too_few_questions_are_refused(tiny_folder: Path, span_folder: Path) -> None:
    with pytest.raises(ModelError, match="no model that marks answers"):
        onnx.load_span_model(tiny_folder)
    with pytest.raises(InputError, match="1 questions are too few"):
        onnx.export_span_model(span_folder, tiny_folder, PAIRS[:1])


def test_the_most_likely_span_begins_before_it_ends() -> None:
    starts, ends = torch.tensor([0.0, 0.0, 5.0]), torch.tensor([9.0, 1.0, 2.0])
    assert onnx.span_of(torch.stack([starts, ends])) == (0, 0)
    assert onnx.span_of(torch.stack([starts, ends[[1, 0, 2]]])) == (0, 1)
    assert onnx.span_of(torch.stack([-starts, -ends])) == (0, 1)
