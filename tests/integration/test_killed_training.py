"""SIGKILL at 20 random points of a training: the weights are those of a calm one, bit by bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

KILLS = 20
TRAIN = """
import sys
from potstill.distill import Distiller

asks = ["How many", "What", "Which", "Of what", "How", "Why", "Where", "When", "Who", "Whose"]
rows = [
    {"context": f"Unit {n} holds {n} tons.", "question": f"{ask} tons?", "answer": f"{n}"}
    for n in range(12)
    for ask in asks
]
Distiller(
    sys.argv[1],
    output=sys.argv[2],
    epochs=30,
    step_tokens=400,
    precision=sys.argv[3],
    signal=sys.argv[4],
    signal_count=16,
    patience=0,
    checkpoint_minutes=0.01,
    learning_rate=1e-3,
).train(rows)
"""


def steps_told(events: Path) -> int:
    """How many lines of the diary tell of steps."""
    return events.read_text().count('"steps"') if events.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "signal_kind"), [("fp32", "top_k"), ("bf16", "hidden_bf16")])
def test_weights_after_twenty_kills_are_bit_identical(
    tiny_teacher: Path, tmp_path: Path, precision: str, signal_kind: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)

    def command(output: Path) -> list[str]:
        return [sys.executable, str(script), str(tiny_teacher), str(output), precision, signal_kind]

    began = time.monotonic()
    subprocess.run(command(tmp_path / "calm"), check=True, capture_output=True, timeout=600)
    took = time.monotonic() - began
    lot, kills = random.Random(2026), 0
    events = tmp_path / "killed" / "events.jsonl"
    while kills < KILLS:
        before = steps_told(events)
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kills % 4 == 0:  # at any moment, while it starts and looks for its checkpoint too
            time.sleep(lot.uniform(0.0, 0.3 * took))
        else:
            while process.poll() is None and steps_told(events) == before:
                time.sleep(0.02)
            time.sleep(lot.uniform(0.0, 0.04 * took))
        assert process.poll() is None, f"ended after {kills} kills: too short for this machine"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, timeout=600)
    calm, killed = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("calm", "killed")
    )
    assert calm.keys() == killed.keys()
    for name, tensor in calm.items():
        assert tensor.equal(killed[name]), name
    assert (tmp_path / "calm" / "trained.json").read_bytes() == (
        tmp_path / "killed" / "trained.json"
    ).read_bytes()
