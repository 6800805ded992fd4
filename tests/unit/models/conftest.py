"""A cache folder of its own for each test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $POTSTILL_CACHE."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("POTSTILL_CACHE", str(folder))
    return folder
