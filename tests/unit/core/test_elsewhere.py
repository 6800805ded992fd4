"""A stage whose function is replaced by the one that a runner names, in the stage's process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from potstill import curate
from potstill.core.stage import StageFunction
from potstill.core.worker import _function


def moved(stage: str, function: StageFunction, place: Mapping[str, Any]) -> StageFunction:
    """What `Elsewhere.function` names in this test."""

    def run(config: Any, inputs: Any, draft: Any, context: Any) -> None:
        raise RuntimeError(f"{stage} at {place['name']} instead of {function.__name__}")

    return run


def test_the_function_that_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _function(curate.STAGE, None) is curate.STAGE.load()
    monkeypatch.setitem(sys.modules, "a_place", sys.modules[__name__])
    found = _function(curate.STAGE, {"function": "a_place:moved", "place": {"name": "home"}})
    with pytest.raises(RuntimeError, match="curate at home instead of run"):
        found(None, {}, None, None)  # type: ignore[arg-type]
