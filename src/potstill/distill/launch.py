"""A stage that is done by several processes of this machine: started, watched, started again.

In: a stage's function and what it is called with, the number of processes. Out: the stage's result,
as one process would leave it, within rounding. PyTorch's elastic launcher starts the processes
(`rank.py`), and ends all of them when one has died; then all go on from what is on disk, as a
stage does after any kill, a bounded number of times. What the user has to put right is not tried
again. Light: no torch before something is launched. Knows nothing of what the stage does.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.files import read_json, write_json
from potstill.core.machine import gpus
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill.config import DistillConfig
from potstill.distill.training_config import TrainingConfig
from potstill.errors import PotstillError, TrainingError, error_from

FOLDER = "processes"
"""In a draft's work: the job, and what a process says of its error."""


def processes_of(config: TrainingConfig) -> int:
    """How many processes this training is to have on this machine."""
    if config.processes != "auto":
        return config.processes
    if isinstance(config, DistillConfig) and config.on_policy.used:
        return 1
    return max(1, _usable_gpus())


def held_by(config: TrainingConfig) -> int:
    """Processes that share one memory: all of them without GPUs, one to a GPU."""
    count = processes_of(config)
    return 1 if count == 1 or _usable_gpus() else count


def _usable_gpus() -> int:
    """As the system and CUDA_VISIBLE_DEVICES have it."""
    found, visible = len(gpus()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, sum(bool(one.strip()) for one in visible.split(",")))


def spread(
    function: str,
    config: TrainingConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
) -> bool:
    """Have `function` done by as many processes as the config asks for; False if that is this one.

    function: "module:name" of a stage's function; it is called in each process with what is given
    here, and events only in the first.
    Errors: the PotstillError of a process; TrainingError if one dies more often than
    `config.restarts` allows, or there are fewer GPUs than processes.
    """
    from potstill.distill.ranks import Ranks, launched

    if Ranks.here().count > 1:
        return False
    if launched() > 1:
        raise TrainingError(
            "This is one of several processes, and a run starts its own.",
            "Start it without torchrun or accelerate launch, and set distill.processes.",
        )
    count = processes_of(config)
    if count == 1:
        return False
    _check_gpus(count)
    folder = draft.work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = folder / "job.json"
    write_json(job, job_of(function, config, inputs, draft, context, count))
    context.events.metric("processes", count)
    _launch(job, count, config.restarts, context)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def job_of(
    function: str,
    config: TrainingConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    count: int,
) -> dict[str, Any]:
    """What `rank.work` needs to call the function in another process: a JSON value."""
    return {
        "function": function,
        "config": [type(config).__module__, type(config).__name__, config.model_dump(mode="json")],
        "inputs": {name: one.as_dict for name, one in inputs.items()},
        "draft": str(draft.folder),
        "project": str(context.project),
        "cache": str(context.cache),
        "seed": context.seed,
        "threads": max(1, context.threads // count),
        "events": None if context.events.path is None else str(context.events.path),
        "stage": context.events.stage,
    }


def _check_gpus(count: int) -> None:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and count > there:
        raise TrainingError(
            f"{count} processes need a GPU each, and there are {there}.",
            f"Set processes to {there} or auto.",
        )


def _launch(job: Path, count: int, restarts: int, context: Context) -> None:
    """Start the processes until they are done, or died too often."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    failed = job.parent / "failed.json"
    for done in range(restarts + 1):
        try:
            _once(job, count)
            return
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            said = None if _was_killed(error) else failure_in(failed)
            if said is not None:
                raise said from None
            code = first.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        what = f"Process {rank} of the {count} that train {how}"
        failed.unlink(missing_ok=True)
        if done == restarts:
            break
        context.events.warning(
            f"{what}; all {count} go on from the last checkpoint (restart {done + 1} of "
            f"{restarts})."
        )
    hint = "The stage's log says more; run the same command again to go on."
    if code == -signal.SIGKILL:
        hint = "The system may have run out of memory: lower processes or micro_tokens. " + hint
    raise TrainingError(f"{what}, {restarts + 1} times in all.", hint)


def _was_killed(error: Any) -> bool:
    """Whether the system ended one of them; the others' errors are what came of that."""
    deadly = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}
    return any(one.exitcode in deadly for one in error.failures.values())


def failure_in(file: Path) -> PotstillError | None:
    """The error that a process has left there."""
    if not file.exists():
        return None
    return error_from(read_json(file))


def _once(job: Path, count: int) -> None:
    """Start the processes and wait for all. Errors: ChildFailedError if one of them fails."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # counted, and told, here
        logs_specs=DefaultLogsSpecs(log_dir=str(job.parent / "torch")),
        signals_to_handle="SIGTERM",  # what Ctrl-C means is decided by whoever started the run
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(settings, sys.executable)("-m", "potstill.distill.rank", str(job))
    except SignalException as error:
        raise SystemExit(128 + int(error.sigval)) from None
    finally:
        signal.signal(signal.SIGTERM, before)
