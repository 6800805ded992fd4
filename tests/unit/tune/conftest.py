"""A search over fake stages: see fakes.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from potstill import pipeline


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module beside this file; tests are imported by path and have no package."""
    spec = importlib.util.spec_from_file_location("tune_fakes", Path(__file__).parent / "fakes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tune_fakes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> object:
    """Fake stages in place of the real ones; knows what was trained."""
    made = fakes.FakeRuns()
    monkeypatch.setattr(pipeline, "run", made)
    monkeypatch.delenv("POTSTILL_STORE", raising=False)
    return made
