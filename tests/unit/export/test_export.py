"""The export stage on a tiny student: files, figures, the card, and what the gate catches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from potstill.core.stage import Draft
from potstill.errors import ModelError
from potstill.export import STAGE, ExportConfig
from potstill.export.gguf import convert, tensor_types
from potstill.models.load import load_tokenizer


def swap_tensors(path: Path, first: str, second: str) -> None:
    """Exchange the bytes of two tensors of the same size."""
    from gguf import GGUFReader

    places = {t.name: (int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(path).tensors}
    (a, size), (b, other) = places[first], places[second]
    assert size == other
    data = bytearray(path.read_bytes())
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(bytes(data))


def test_every_file_is_made_measured_and_within_its_bounds(exporting: Any) -> None:
    data = exporting.draft.data
    exported = json.loads((data / "export.json").read_text())
    assert sorted(exported["models"]) == ["gguf-f16", "gguf-q4_k_m"]
    f16, q4 = exported["parity"]
    assert f16["kl_student"] < 1e-4 < q4["kl_student"]
    assert f16["agreement_student"] >= 0.99
    assert f16["stops"]
    assert f16["prompts"] == q4["prompts"] == 4
    assert list(data.glob(".*")) == []
    for model in exported["models"].values():
        assert (data / model["file"]).stat().st_size == model["disk_bytes"]
        assert model["tokens_per_second"] > 0 < model["time_to_first_token_s"]
        assert model["peak_memory_bytes"] > model["disk_bytes"]
        assert {"kl", "agreement", "perplexity", "f1", "em"} <= set(model["metrics"])
        for figure in model["metrics"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == 4


def test_a_file_of_the_teacher_itself_would_have_no_kl_and_another_model_has(
    exporting: Any,
) -> None:
    metrics = json.loads((exporting.draft.data / "export.json").read_text())["models"]["gguf-f16"]
    # teacher and student are two random models here: far apart, while file and student are one
    assert metrics["metrics"]["kl"]["value"] > 0.1
    assert metrics["metrics"]["kl_student"]["value"] < 1e-4


def test_matrices_that_cannot_be_k_quantised_are_named(exporting: Any) -> None:
    exported = json.loads((exporting.draft.data / "export.json").read_text())
    types = tensor_types(exporting.draft.data / "student-q4_k_m.gguf")
    assert "Q4_K" not in types  # rows of 64 numbers are too short for it
    assert f"15 of {sum(types.values())} matrices are not Q4_K" in exported["notes"][0]
    assert tensor_types(exporting.draft.data / "student-f16.gguf") == {"F16": 15}


def test_the_safetensors_are_the_students_own(exporting: Any) -> None:
    source = exporting.inputs["distill"].path("models/distilled")
    for file in source.iterdir():
        assert (exporting.draft.data / "safetensors" / file.name).read_bytes() == file.read_bytes()


def test_the_card_has_a_header_and_every_model_in_its_tables(exporting: Any) -> None:
    card = (exporting.draft.data / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "text-generation"
    for word in ("teacher", "distilled (safetensors)", "student-f16.gguf", "student-q4_k_m.gguf"):
        assert sum(word in line for line in body.splitlines() if line.startswith("|")) >= 2
    assert "llama-cli -m student-q4_k_m.gguf" in body


def test_a_file_with_two_tensors_exchanged_fails_the_run_and_is_deleted(exporting: Any) -> None:
    draft = Draft(exporting.folder / "damaged")
    draft.data.mkdir(parents=True)
    draft.work.mkdir()
    file = draft.data / "student-f16.gguf"
    shutil.copy(exporting.draft.data / file.name, file)
    swap_tensors(file, "blk.0.ffn_gate.weight", "blk.1.ffn_gate.weight")
    config = exporting.config.model_copy(update={"quantisations": ()})
    with pytest.raises(ModelError, match=r"student-f16\.gguf is not the student any more"):
        STAGE.load()(config, exporting.inputs, draft, exporting.context)
    assert not file.exists()


def test_a_tokenizer_with_an_unknown_splitting_rule_is_refused(
    tmp_path: Path, make_student: Callable[..., Path]
) -> None:
    folder = make_student(tmp_path / "student")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ModelError, match="splits text by a rule that llama"):
        convert(folder, tmp_path / "out.gguf", load_tokenizer(folder), "student")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_a_missing_student_is_one_clear_line(exporting: Any, tmp_path: Path) -> None:
    inputs = {**exporting.inputs, "distill": exporting.inputs["curate"]}
    draft = Draft(tmp_path)
    draft.data.mkdir()
    with pytest.raises(ModelError, match="left no student"):
        STAGE.load()(exporting.config, inputs, draft, exporting.context)


def test_names_of_quantisations_may_be_upper_case_and_f16_is_not_made_twice() -> None:
    config = ExportConfig(quantisations=("Q4_K_M", "F16", "q4_k_m", "Q8_0"))  # type: ignore[arg-type]
    assert config.quantisations == ("q4_k_m", "q8_0")
    with pytest.raises(ValidationError, match="q4_k_m"):
        ExportConfig(quantisations=("q3",))  # type: ignore[arg-type]
