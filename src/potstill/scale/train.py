"""The trainings of a run on the workers of a Ray cluster, by Ray Train.

In: the distill or correct stage's configuration and inputs, an address of Ray, a number of workers.
Out: the stage's result in its draft, as several processes of one machine leave it. The inputs, the
draft and what the recipe names must have the same path on every worker: a local Ray, or a shared
folder. Ray starts the processes, joins them, and starts all again when one is lost; then they go on
from the checkpoint in the draft. Knows nothing of what a stage does.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter
from potstill.core.extras import require
from potstill.core.files import read_json, write_json
from potstill.core.stage import Artifact, Context, Draft, StageFunction
from potstill.distill.config import DistillConfig
from potstill.distill.correct_config import CorrectConfig
from potstill.distill.launch import FOLDER, failure_in, job_of, processes_of
from potstill.distill.training_config import TrainingConfig
from potstill.errors import PotstillError, TrainingError, UnavailableError
from potstill.scale.held import QUIET, begin, gpu_each, last_line
from potstill.scale.place import Place

LOCAL = "ray"
OBJECT_STORE_BYTES = 128 << 20
"""Of a local Ray: nothing but a job's few lines goes through it."""
PATIENCE_SECONDS = 7 * 24 * 3600


def at_place(function: StageFunction, place: Place) -> StageFunction:
    """The stage's function, whose training is done by Ray's workers if it is to have several
    processes, and if a worker can open the files of the project."""

    def run(config: Any, inputs: Any, draft: Any, context: Any) -> None:
        count = _processes(config, place)
        if count == 1 or getattr(config, "method", "") == "none":
            function(config, inputs, draft, context)
        elif not place.sees_files:
            context.events.warning(
                f"The {count} processes of the training run on this machine: the workers of "
                f"{place.address} do not see the project's files (--shared says that they do)."
            )
            function(config, inputs, draft, context)
        else:
            threads = place.threads
            distill_on_ray(
                place.address, config, inputs, draft, context, workers=count, threads=threads
            )

    return run


def _processes(config: Any, place: Place) -> int:
    """As many as the recipe says; by `auto` as many as --workers says. A student that marks answers
    is trained in one."""
    if not isinstance(config, TrainingConfig):
        return 1
    alone = isinstance(config, DistillConfig) and config.on_policy.used
    if config.processes == "auto" and place.workers and not alone:
        return place.workers
    return processes_of(config)


def distill_on_ray(
    address: str,
    config: TrainingConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    *,
    workers: int,
    threads: int = 1,
) -> None:
    """Run the distill stage, or with a CorrectConfig the correct stage, on that many workers.

    address: `ray` for workers of this machine, which end with the call, or `ray://host:port`; a Ray
    that this process is connected to already is used and kept. threads: of each worker, which
    also gets a GPU where the cluster has as many as workers.
    Errors: MissingExtraError; UnavailableError if the cluster cannot be reached; the stage's own
    PotstillError; TrainingError if workers are lost more often than `config.restarts` allows.
    """
    if isinstance(config, CorrectConfig):
        function = "potstill.distill.correct:run"
    else:
        function = "potstill.distill.run:run"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    ray = require("ray", "ray", "Training on Ray")
    folder = draft.work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = job_of(function, config, inputs, draft, context, workers)
    job |= {"threads": threads, "folder": str(folder), "restarts": config.restarts}
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, workers * threads)
    try:
        context.events.metric("processes", workers)
        _fit(ray, job, workers, threads, config.restarts)
    finally:
        if ours:
            ray.shutdown()
    if (said := failure_in(folder / "failed.json")) is not None:
        raise said
    shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, address: str, cores: int) -> None:
    try:
        if address == LOCAL:  # not the run's: that may have fewer cores to give
            begin(ray, cores + 1, OBJECT_STORE_BYTES)  # one for what watches the workers
        else:
            ray.init(address, **QUIET)
    except Exception as error:  # Ray raises what its transport raises
        raise UnavailableError(
            f"No training can be done on {address}: {last_line(error)}.",
            "Start a cluster with: ray start --head --ray-client-server-port 10001, or train on "
            "this machine with distill.processes.",
        ) from error


def _fit(ray: Any, job: dict[str, Any], workers: int, threads: int, restarts: int) -> None:
    """Errors: TrainingError if workers are lost too often."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own old names
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = bool(gpu_each(ray, workers))
        trainer = TorchTrainer(
            _work,
            train_loop_config=job,
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": threads}
            ),
            run_config=RunConfig(
                name="training",
                storage_path=str(Path(job["folder"]) / "ray"),
                failure_config=FailureConfig(max_failures=restarts),
            ),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=PATIENCE_SECONDS
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray wraps whatever a worker raised
            if (Path(job["folder"]) / "failed.json").exists():
                return
            raise TrainingError(
                f"The workers were lost {restarts + 1} times: {last_line(error)}.",
                "They may lack memory: use fewer or larger ones. Run the same command again to go "
                "on.",
            ) from error


def _work(job: dict[str, Any]) -> None:
    """One worker. What the user has to put right is left in a file, so that nobody tries again."""
    folder = Path(job["folder"])
    failed = folder / "failed.json"
    if failed.exists():
        return
    from potstill.distill.rank import work
    from potstill.distill.ranks import Ranks

    if Ranks.here().leads:
        _count(folder / "attempts.json", job)
    try:
        work(job)
    except PotstillError as error:
        said = error.as_dict
        write_json(failed, said)
        raise


def _count(file: Path, job: Mapping[str, Any]) -> None:
    """Say in the events that this is not the first attempt."""
    before = int(read_json(file)["attempts"]) if file.exists() else 0
    write_json(file, {"attempts": before + 1})
    if before and job["events"] is not None:
        Emitter(Path(job["events"]), job["stage"]).warning(
            f"A worker was lost; all go on from the last checkpoint (restart {before} of "
            f"{job['restarts']})."
        )
