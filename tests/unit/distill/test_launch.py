"""A stage on two processes: the same result as on one, through kills, and errors that stay clear."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.core.stage import Draft
from potstill.distill import DistillConfig, launch
from potstill.models.load import load_model

Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
Events = Callable[[], list[dict[str, Any]]]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_model(folder).state_dict()
    return found


def assert_alike(one: Draft, other: Draft, rounding: float = 1e-4) -> None:
    """The same curves within rounding, the same files, weights within a step of bf16."""
    both = [json.loads((draft.data / "history.json").read_text()) for draft in (one, other)]
    for name in ("distilled", "finetuned"):
        for table in ("steps", "validation"):
            curves, expected = (
                [
                    {key: value for key, value in row.items() if "grad_norm_" not in key}
                    for row in found[name][table]
                ]
                for found in both
            )
            assert len(curves) == len(expected) > 0
            for row, known in zip(curves, expected, strict=True):
                assert row == pytest.approx(known, rel=rounding, abs=1e-7)
    files = [
        {name for name in digests_of(draft.data) if "tensorboard" not in name}
        for draft in (one, other)
    ]
    assert files[0] == files[1]
    trained, known = (weights_of(draft.data / "models" / "distilled") for draft in (one, other))
    for name, tensor in known.items():
        difference = (trained[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert float(difference) < 2**-8, name
    told = [json.loads((draft.data / "training.json").read_text()) for draft in (one, other)]
    assert told[0] == told[1]


@pytest.mark.whole
def test_a_stage_of_two_processes_that_is_killed_ends_as_that_of_one(
    config_of: Configs, run_stage: Run, events_of: Events, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "epochs": 4,
        "validations": 4,
        "checkpoint_minutes": 1e-6,
        "signal": "hidden_bf16",
    }
    alone = run_stage(config_of(**settings), "alone")
    killed: list[int] = []

    def kill_one() -> None:
        """The second process, once the first training has left a checkpoint."""
        work = tmp_path / "pair" / "work" / "distilled"
        until = time.monotonic() + 200
        while not killed and time.monotonic() < until:
            if list(work.glob("checkpoint-*/complete.json")):
                for process in processes_of_job(tmp_path / "pair"):
                    if rank_of(process) == "1":
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)
                        break
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    pair = run_stage(config_of(**settings, processes=2, restarts=2), "pair")
    killer.join()
    assert killed
    assert_alike(pair, alone)
    said = [event["message"] for event in events_of() if event["kind"] == "warning"]
    expected = (
        "Process 1 of the 2 that train was killed by signal 9; all 2 go on from the last "
        "checkpoint (restart 1 of 2)."
    )
    assert expected in said
    assert not (pair.work / launch.FOLDER).exists()
    assert not processes_of_job(tmp_path / "pair")


def processes_of_job(draft: Path) -> list[int]:
    """The processes whose job lies in that draft."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"potstill.distill.rank" in words and str(draft).encode() in b" ".join(words):
            found.append(int(folder.name))
    return found


def rank_of(process: int) -> str:
    try:
        said = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((one[5:].decode() for one in said if one.startswith(b"RANK=")), "")
