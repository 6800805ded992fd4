"""The distill stage on two Ray workers: the result of one process, though a worker is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.core.stage import Artifact, Draft
from potstill.distill import DistillConfig

pytestmark = pytest.mark.whole

SCRIPT = """
import sys
from pathlib import Path

from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import DistillConfig
from potstill.errors import PotstillError
from potstill.scale.stages import on_ray

here, draft = Path(sys.argv[1]), Draft(Path(sys.argv[2]))
config = DistillConfig.model_validate_json(sys.argv[3])
names = ("ingest", "curate", "correct")
inputs = {name: Artifact(name, "key", here / name, "digest") for name in names}
events = Emitter(here / "events.jsonl", "distill")
context = Context(here, here / "cache", 7, 1, events)
try:
    on_ray("distill", None, {"address": "ray"})(config, inputs, draft, context)
except PotstillError as error:
    print(type(error).__name__, error.message)
    sys.exit(error.exit_code)
"""
Configs = Callable[..., DistillConfig]


def start(here: Path, draft: Draft, config: DistillConfig) -> subprocess.Popen[str]:
    pytest.importorskip("ray", reason="an environment with the extra ray runs it, as CI's is")
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(here), str(draft.folder), config.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_a_worker(process: subprocess.Popen[str], work: Path) -> bool:
    """One of the script's own Ray workers, once the training has left a checkpoint."""
    psutil = pytest.importorskip(
        "psutil", reason="an environment with the extra ray or train runs it, as CI's is"
    )
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        if list(work.glob("checkpoint-*/complete.json")):
            for one in psutil.Process(process.pid).children(recursive=True):
                if "RayTrainWorker" in " ".join(one.cmdline()):
                    one.kill()
                    return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize(
    "sharding",
    ["deepspeed", *(pytest.param(one, marks=pytest.mark.slow) for one in ("none", "fsdp"))],
)
def test_a_killed_worker_is_replaced_and_the_result_is_that_of_one_process(
    config_of: Configs,
    run_stage: Callable[..., Draft],
    make_draft: Callable[[str], Draft],
    stage_inputs: dict[str, Artifact],
    events_of: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
    sharding: str,
) -> None:
    settings = {"checkpoint_minutes": 1e-6, "restarts": 2}
    draft = make_draft("ray")
    process = start(tmp_path, draft, config_of(**settings, processes=2, sharding=sharding))
    killed = kill_a_worker(process, draft.work / "distilled")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said[-3000:]
    assert killed
    alone = run_stage(config_of(**settings), "alone")
    for name in ("distilled", "finetuned"):
        both = [json.loads((one.data / "history.json").read_text())[name] for one in (draft, alone)]
        for table in ("steps", "validation"):
            assert len(both[0][table]) == len(both[1][table]) > 0
            for row, known in zip(both[0][table], both[1][table], strict=True):
                own, other = (
                    {key: value for key, value in one.items() if "grad_norm_" not in key}
                    for one in (row, known)
                )
                assert own == pytest.approx(other, rel=1e-4, abs=1e-7)
    told = [event["message"] for event in events_of() if event["kind"] == "warning"]
    assert "A worker was lost; all go on from the last checkpoint (restart 1 of 2)." in told
