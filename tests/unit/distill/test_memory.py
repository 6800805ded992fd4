"""glibc's heap keeps freed blocks, until the process has grown beyond what a step needs."""

from __future__ import annotations

import os

import pytest

from potstill.distill import memory


def test_memory_is_given_back_only_after_growing_far_beyond_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[int] = []
    held = iter([1000, 1200, 1300, 1100, 1370, 1380])
    monkeypatch.setattr(memory, "give_back", lambda: given.append(1))
    monkeypatch.setattr(memory, "resident_bytes", lambda process: next(held))
    trimmer = memory.Trimmer()
    told = []
    for _ in range(6):
        trimmer.on_step_end(None, None, None)
        told.append(len(given))
    # 1300 is more than a quarter above 1000; the step after it needs 1100, and 1380 is too much.
    assert told == [0, 0, 1, 1, 1, 2]


@pytest.mark.skipif(
    memory.glibc() is None,
    reason="a Linux machine with glibc runs it, as CI is: no other malloc has these settings",
)
def test_a_freed_block_is_held_until_it_is_given_back() -> None:
    memory.raise_malloc_thresholds()
    memory.give_back()
    before = memory.resident_bytes(os.getpid())
    block = bytearray(64 << 20)
    guard = bytearray(1 << 16)  # above the block, so that the heap's end cannot simply shrink
    del block
    kept = memory.resident_bytes(os.getpid())
    memory.give_back()
    after = memory.resident_bytes(os.getpid())
    assert before > 0
    assert len(guard) == 1 << 16
    assert kept - before > 50 << 20
    assert after - before < 10 << 20
