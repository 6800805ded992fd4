"""A small teacher for whole-pipeline tests: four layers, and the sample handbook's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill import sample

MEASURED = {
    "max_examples": 3,
    "answer_tokens": 4,
    "resamples": 100,
    "speed_rounds": 1,
    "speed_tokens": 2,
}


@pytest.fixture(scope="session")
def tiny_teacher(
    tmp_path_factory: pytest.TempPathFactory, make_student: Callable[..., Path]
) -> Path:
    """A random Llama folder whose tokenizer was trained on the sample handbook."""
    return make_student(
        tmp_path_factory.mktemp("tiny-teacher"),
        text=sample.sample_path("handbook.md").read_text("utf-8"),
        vocabulary=800,
        layers=4,
        positions=1024,
    )


@pytest.fixture
def small_recipe(tiny_teacher: Path) -> dict[str, Any]:
    """A recipe that takes seconds: one text file, a tiny teacher, a few steps."""
    return {
        "name": "small",
        "teacher": str(tiny_teacher),
        "ingest": {"sources": ["notes.md"], "chunk_tokens": 160, "overlap_tokens": 0},
        "generate": {"backend": "fake", "pairs_per_chunk": 3},
        "distill": {
            "student": {"drop_layers": 1, "calibration_tokens": 64},
            "epochs": 2,
            "step_tokens": 512,
            "micro_tokens": 1024,
            "sequence_tokens": 512,
            "validations": 2,
        },
        "evaluate": MEASURED | {"speed_parallel": []},
        "export": MEASURED,
    }
