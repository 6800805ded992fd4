"""What this process holds is told by itself, and not by who started it."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
