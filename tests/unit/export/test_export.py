"""The export stage on a tiny student: files, figures, the card, and what the gate catches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from potstill.core.stage import Artifact, Draft
from potstill.errors import ModelError
from potstill.export import STAGE, ExportConfig
from potstill.export.blocks import block_errors
from potstill.export.chain import Allowance
from potstill.export.gguf import convert, convert_balanced, quantize, tensor_types
from potstill.export.merged import merge_hop
from potstill.export.parity import Row, score_files
from potstill.export.run import run
from potstill.models import adapters
from potstill.models.adapter_config import LoraConfig
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model


def test_every_file_is_made_measured_and_within_its_bounds(exporting: Any) -> None:
    data = exporting.draft.data
    exported = json.loads((data / "export.json").read_text())
    assert sorted(exported["models"]) == ["gguf-f16", "gguf-q4_k_m"]
    first, *others = exported["parity"]
    assert first["hop"] == "teacher to distilled"
    assert all(set(one) == set(first) for one in others)
    assert [hop["to"] for hop in exported["chain"]] == ["distilled", "gguf-f16", "gguf-q4_k_m"]
    assert all(hop["holds"] for hop in exported["chain"])
    _, f16, q4 = exported["chain"]
    assert f16["kl"]["value"] < 1e-4 < q4["kl"]["value"]
    assert f16["kl"]["low"] <= f16["kl"]["value"] <= f16["kl"]["high"]
    assert f16["agreement"]["value"] >= 0.99
    assert q4["block_errors"]
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
    said = f"15 of {sum(types.values())} matrices are not Q4_K"
    assert any(said in note for note in exported["notes"])
    assert tensor_types(exporting.draft.data / "student-f16.gguf") == {"F16": 15}


def test_quantised_files_are_made_of_a_balanced_student_that_says_the_same(
    exporting: Any, tmp_path: Path
) -> None:
    """Of a student whose layers hear some inputs far more loudly than others."""
    exported = json.loads((exporting.draft.data / "export.json").read_text())
    assert 0 < exported["balance"]["error_left"] <= 1
    assert exported["balance"]["tokens"] > 0
    assert any("balanced weights" in note for note in exported["notes"])

    folder = exporting.inputs["distill"].path("models/distilled")
    tokenizer, student = load_tokenizer(folder), load_model(folder, "float32")
    with torch.no_grad():
        for layer in student.model.layers:
            layer.input_layernorm.weight[::7] *= 32
            layer.self_attn.q_proj.weight[:, ::7] /= 32
    loud, plain, source = tmp_path / "loud", tmp_path / "plain.gguf", tmp_path / "balanced.gguf"
    save_model(student.to(torch.bfloat16), tokenizer, loud)
    convert(loud, plain, tokenizer, "student")
    rows = [tokenizer.encode(text) for text in ("Who drains the boiler?", "Close valve B2.")]
    left = convert_balanced(loud, source, tokenizer, "student", rows)
    assert left is not None
    assert left < 1
    both = {"plain": plain, "balanced": source}
    scored = [Row(f"r{n}", ids, 1, (), (), None) for n, ids in enumerate(rows)]
    reference = load_model(loud, "float32")
    sums = score_files(both, reference, None, scored, len(tokenizer), 1)
    for one in sums.values():
        assert sum(row["kl_student"] for row in one) < 1e-4 * sum(row["tokens"] for row in one)
    for kind in ("q8_0", "q4_0"):
        quantize(source, tmp_path / f"{kind}.gguf", kind, 1)
        block_errors(source, tmp_path / f"{kind}.gguf")
        with pytest.raises(ModelError, match="damaged block"):
            block_errors(plain, tmp_path / f"{kind}.gguf")
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_dir()) == ["loud"]


def test_who_wants_no_balance_gets_none(exporting: Any, tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft")
    draft.data.mkdir(parents=True)
    draft.work.mkdir()
    plain = exporting.config.model_copy(update={"balance": False})
    run(plain, exporting.inputs, draft, exporting.context)
    exported = json.loads((draft.data / "export.json").read_text())
    assert "balance" not in exported
    assert not (draft.work / "balanced-f16.gguf").exists()


def test_the_safetensors_are_the_students_own(exporting: Any) -> None:
    source = exporting.inputs["distill"].path("models/distilled")
    for file in source.iterdir():
        assert (exporting.draft.data / "safetensors" / file.name).read_bytes() == file.read_bytes()


def test_the_card_has_a_header_and_every_model_in_its_tables(exporting: Any) -> None:
    card = (exporting.draft.data / "README.md").read_text()
    exported = json.loads((exporting.draft.data / "export.json").read_text())
    assert "distilled from `teacher`" in card
    assert str(exporting.folder) not in card  # others read it
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "text-generation"
    for word in ("teacher", "distilled (safetensors)", "student-f16.gguf", "student-q4_k_m.gguf"):
        assert sum(word in line for line in body.splitlines() if line.startswith("|")) >= 2
    assert f"llama-cli -m {exported['recommended']['file']}" in body


def test_a_kept_adapter_has_a_hop_of_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapters.as_base(load_model(tiny_folder), "lora", remember=True)
    attached = adapters.attach(model, "lora", LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    adapters.save_adapter(attached, tmp_path / "kept", "lora", None)
    merged = adapters.merge(attached, range(5, 30))
    rows = [Row(str(n), list(range(n, n + 40)), 5, (), (), None) for n in (7, 50)]
    hop = merge_hop(tiny_folder, tmp_path / "kept", merged, rows, Allowance(1e-4), 1, 100, 0.9)
    assert hop["kl"]["value"] < 1e-6
    assert hop["agreement"]["value"] == 1.0
    other = load_model(tiny_folder)  # the base, as if the adapter had not been merged
    with pytest.raises(ModelError, match="adapter -> merged lost more than it may"):
        merge_hop(tiny_folder, tmp_path / "kept", other, rows, Allowance(1e-4), 1, 100, 0.9)


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


@pytest.fixture
def strict(exporting: Any, tmp_path: Path) -> tuple[Any, Draft]:
    """Bounds that no quantised file can keep, and a draft that has the files already."""
    bounds = {"quantised_max_kl": 1e-12, "quantisations": ()}
    shutil.copytree(exporting.draft.data, tmp_path / "data")
    (tmp_path / "data/export.json").unlink()
    draft = Draft(tmp_path)
    draft.work.mkdir()
    return exporting.config.model_copy(update=bounds), draft


def test_a_candidate_that_loses_too_much_is_left_out_with_its_reason(
    exporting: Any, strict: tuple[Any, Draft]
) -> None:
    config, draft = strict
    config = config.model_copy(update={"candidates": ("q4_k_m",)})
    STAGE.load()(config, exporting.inputs, draft, exporting.context)
    found = json.loads((draft.data / "export.json").read_text())
    assert [one["kind"] for one in found["left_out"]] == ["q4_k_m"]
    assert "nats a token" in found["left_out"][0]["why"]
    assert set(found["models"]) == {"gguf-f16"}
    assert "gguf-q4_k_m" not in [hop["to"] for hop in found["chain"]]
    assert any("is left out" in note for note in found["notes"])
    assert not (draft.data / "student-q4_k_m.gguf").exists()


def test_a_file_that_was_asked_for_and_loses_too_much_fails_the_run(
    exporting: Any, strict: tuple[Any, Draft]
) -> None:
    config, draft = strict
    both = {"quantisations": ("q4_k_m",), "candidates": ("q4_k_m",)}
    with pytest.raises(ModelError, match="nats a token"):
        STAGE.load()(config.model_copy(update=both), exporting.inputs, draft, exporting.context)
    assert not list(draft.data.glob("*.gguf"))


def test_names_of_quantisations_may_be_upper_case_and_f16_is_not_made_twice() -> None:
    config = ExportConfig(quantisations=("Q4_K_M", "F16", "q4_k_m", "Q8_0"))  # type: ignore[arg-type]
    assert config.quantisations == ("q4_k_m", "q8_0")
    with pytest.raises(ValidationError, match="q4_k_m"):
        ExportConfig(quantisations=("q3",))  # type: ignore[arg-type]


def test_answers_that_were_drawn_are_not_compared_with_greedy_ones(tmp_path: Path) -> None:
    from potstill.export.run import _student_answers

    evaluate = Artifact("evaluate", "key", tmp_path, "digest")
    evaluate.path("results.json").parent.mkdir(exist_ok=True)
    line = {"model": "distilled", "id": "r", "answer": "1310", "finished": True}
    evaluate.path("predictions.jsonl").write_text(json.dumps(line) + "\n")
    for temperature, known in ((0, {"r": "1310"}), (0.7, {})):
        settings = {"settings": {"decoding": {"temperature": temperature}}}
        evaluate.path("results.json").write_text(json.dumps(settings))
        assert _student_answers(evaluate) == known
