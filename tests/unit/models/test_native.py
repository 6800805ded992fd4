"""llama.cpp in a process of its own: what it is started with, and what its end means."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ModelError
from potstill.models import native


def score(missing: Path) -> None:
    with native.scorer(missing, context=8, threads=1):
        pass


def answer(missing: Path) -> None:
    native.answer(
        missing, [], max_tokens=1, end=None, timed_tokens=2, timed_rounds=1, context=8, threads=1
    )


@pytest.mark.parametrize(("work", "sleeps"), [(answer, False), (score, True)])
def test_threads_sleep_only_beside_a_model_that_works_in_turn(
    work: Callable[[Path], None], sleeps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[dict[str, Any]] = []
    real = subprocess.Popen

    def spy(*args: Any, **more: Any) -> Any:
        started.append(more["env"])
        return real(*args, **more)

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(native.subprocess, "Popen", spy)
    with pytest.raises(ModelError, match=f"cannot {work.__name__} .*no.gguf"):
        work(tmp_path / "no.gguf")
    assert (started[0].get("OMP_WAIT_POLICY") == "passive") == sleeps
