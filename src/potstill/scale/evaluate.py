"""Evaluation on Ray: models are scored by workers, each a part of the examples.

In: what the stage gets, and a place. Out: the same figures, within the rounding of where a part
begins. A part is as `evaluate/bench.py` has it; a worker leaves it in the draft, so the draft and
the models must have the same path there: a local Ray, or a shared folder. How fast a model is and
what memory it takes is measured where the run is, alone. A worker that is killed loses the part
that it was at, and Ray gives it to another. Knows no score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from potstill.core.stage import Artifact, Context, Draft, StageFunction
from potstill.errors import ModelError, PotstillError, error_from
from potstill.evaluate import run as stage
from potstill.evaluate.bench import Bench, Part, bench_of
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.encode import TEACHER
from potstill.evaluate.scan import ScoredAnswer
from potstill.scale.cluster import Cluster, connected, gone
from potstill.scale.place import Place

LOSSES = 4  # of one part with the worker that had it: it is not chance


def at_place(function: StageFunction, place: Place) -> StageFunction:
    """The stage's function with its models scored by workers, if these can open its files.

    A student that marks answers is measured where the run is: it reads thousands a minute.
    """

    def run(config: Any, inputs: Any, draft: Any, context: Any) -> None:
        if not isinstance(config, EvaluateConfig):
            function(config, inputs, draft, context)
        elif not place.sees_files:
            context.events.warning(
                f"Models are evaluated on this machine: the workers of {place.address} do not see "
                "the project's files (--shared says that they do)."
            )
            function(config, inputs, draft, context)
        else:
            spread(config, inputs, draft, context, place)

    return run


def spread(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    place: Place,
) -> None:
    """The stage, with its models scored at that place. Errors: the stage's; UnavailableError."""
    job = {
        "config": config.model_dump(mode="json"),
        "inputs": {name: one.as_dict for name, one in inputs.items()},
        "work": str(draft.work),
        "threads": place.threads,
    }
    stage.run(config, inputs, draft, context, partial(_by_workers, json.dumps(job), place))


def _by_workers(
    job: str, place: Place, bench: Bench, context: Context
) -> dict[str, list[ScoredAnswer]]:
    with connected(place) as cluster:
        parts = bench.parts(cluster.workers)
        context.events.metric("parts", len(parts))
        names = [source.name for source in bench.sources if source.name != TEACHER]
        for some in ([TEACHER], names):
            tasks = [(name, part) for name in some for part in parts if not bench.done(name, part)]
            _do(cluster, job, tasks, partial(_tell, context, bench, parts))
    return bench.scored(parts)


def _do(
    cluster: Cluster,
    job: str,
    tasks: Sequence[tuple[str, Part]],
    tell: Callable[[str], None],
) -> None:
    """Have all parts done. Errors: a worker's own; PotstillError if workers die again and again."""
    ray = cluster.ray
    score = ray.remote(_score).options(
        num_cpus=cluster.place.threads, num_gpus=cluster.gpu_each, max_retries=LOSSES
    )
    running = {score.remote(job, name, part.number, part.count): name for name, part in tasks}
    while running:
        ended, _ = ray.wait(list(running))
        for call in ended:
            name = running.pop(call)
            try:
                failed = ray.get(call)
            except Exception as error:  # whatever Ray raises of a worker that is gone
                raise gone(cluster.place, error) from error
            if failed is not None:
                raise error_from(failed)
            tell(name)


def _tell(context: Context, bench: Bench, parts: Sequence[Part], name: str) -> None:
    done = sum(len(part.places) for part in parts if bench.done(name, part))
    context.events.progress(done, len(bench.held), "examples", step=name)


def _score(job: str, name: str, number: int, count: int) -> dict[str, str] | None:
    """One part by a worker. None, or the error that the user has to put right."""
    import torch

    try:
        bench, threads = _opened(job)
        torch.set_num_threads(threads)
        parts = bench.parts(count)
        if len(parts) != count:
            raise ModelError("A worker has other test examples than the run.", "Share the store.")
        if not bench.done(name, parts[number - 1]):
            bench.score(name, parts[number - 1])
    except PotstillError as error:
        return error.as_dict
    return None


@lru_cache(maxsize=1)  # a worker's process does several parts of one evaluation
def _opened(job: str) -> tuple[Bench, int]:
    values = json.loads(job)
    inputs = {name: Artifact.from_dict(one) for name, one in values["inputs"].items()}
    config = EvaluateConfig.model_validate(values["config"])
    return bench_of(config, inputs, Path(values["work"])), values["threads"]
