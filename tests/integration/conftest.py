"""A small teacher for whole-pipeline tests: four layers, and the sample handbook's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from potstill import sample


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
