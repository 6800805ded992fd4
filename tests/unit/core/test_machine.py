"""What this process holds is told by itself, and not by who started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from potstill.core import machine
from potstill.core.machine import own_peak_bytes, peak_memory_bytes

SAY = "from potstill.core.machine import own_peak_bytes; print(own_peak_bytes())"


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="a Linux machine runs it, as CI is: only there a child begins with its parent's figure",
)
def test_a_small_program_of_a_large_one_is_small() -> None:
    held = bytearray(b"x") * (300 << 20)
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert 5 << 20 < int(said.stdout) < 200 << 20
    assert own_peak_bytes() > len(held)


def test_the_largest_of_all_is_no_smaller_than_its_own() -> None:
    assert peak_memory_bytes() >= 0.9 * own_peak_bytes() > 0


def test_a_containers_limit_bounds_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    whole = machine.memory_bytes()
    assert machine.most_memory_bytes() == whole  # there is no container
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.most_memory_bytes() == whole
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("20000000\n")
    assert machine.most_memory_bytes() == 50_000_000
    assert machine.available_memory_bytes() == 30_000_000
    (tmp_path / "memory.current").write_text("60000000\n")
    assert machine.available_memory_bytes() == 0


def test_graphics_processors_are_those_that_the_driver_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'A card, 80 GB'\n")
    tool.chmod(0o755)
    assert machine.gpus() == ["A card, 80 GB"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == []


def test_memory_without_the_unix_module_is_psutils_or_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows, where a run has to go on all the same."""
    monkeypatch.setitem(sys.modules, "resource", None)
    told = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7 * 2**20))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: told))
    assert peak_memory_bytes() == 7 * 2**20
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert peak_memory_bytes() == 0
