"""What is on a tether ends with whoever holds it, and takes along what it began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.core import tether
from potstill.core.processes import GONE, mark_of

# Begins a process of its own, writes both numbers, and waits.
HELD = """
import os, subprocess, sys, time
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {own.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""


def numbers(file: Path) -> list[int]:
    """The processes that run, as soon as they do."""
    until(file.exists)
    return [int(word) for word in file.read_text().split()]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_let_go_ends_with_all_that_it_began(tmp_path: Path) -> None:
    process = tether.begin([sys.executable, "-c", HELD, str(tmp_path / "numbers")])
    held = numbers(tmp_path / "numbers")
    assert all(mark_of(one) != GONE for one in held)
    tether.end(process)
    tether.end(process)
    until(lambda: all(mark_of(one) == GONE for one in held))


def test_what_is_held_ends_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom potstill.core import tether\n"
        f"tether.begin([sys.executable, '-c', {HELD!r}, {str(tmp_path / 'numbers')!r}])\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code])
    held = numbers(tmp_path / "numbers")
    assert all(mark_of(one) != GONE for one in held)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    until(lambda: all(mark_of(one) == GONE for one in held))


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux machine runs it, as CI is")
def test_the_command_ends_even_if_the_tether_is_killed(tmp_path: Path) -> None:
    process = tether.begin([sys.executable, "-c", HELD, str(tmp_path / "numbers")])
    held, own = numbers(tmp_path / "numbers")
    process.kill()
    tether.end(process)
    until(lambda: mark_of(held) == GONE)
    os.kill(own, signal.SIGKILL)  # what the command began is its own to end then


@pytest.mark.parametrize("code", [0, 3])
def test_its_exit_code_is_the_commands(code: int) -> None:
    process = tether.begin([sys.executable, "-c", f"raise SystemExit({code})"])
    assert process.wait(20) == code
    tether.end(process)


def test_a_death_by_a_signal_is_an_exit_code_as_shells_have_it() -> None:
    process = tether.begin([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert process.wait(20) == 137
    tether.end(process)


def test_a_command_that_is_not_there_is_named() -> None:
    process = tether.begin(["/nowhere/at-all"], stderr=subprocess.PIPE)
    assert process.wait(20) == 127
    assert process.stderr is not None
    assert process.stderr.read() == b"/nowhere/at-all: No such file or directory\n"
    process.stderr.close()
    tether.end(process)
