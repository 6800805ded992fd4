"""The stages in the order in which data flows, and the run that takes a recipe through them.

In: a `Recipe` and a project folder. Out: `runs/<name>/` with the resolved recipe, the diary, the
report and the exported files; finished stages in the project's `store/`.
Knows the order and the folders; how a stage runs is `core/runner.py`, what it does is its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import curate, distill, evaluate, export, generate, ingest
from potstill.core.claims import claimed
from potstill.core.events import Emitter
from potstill.core.files import disk_errors, write_atomic
from potstill.core.machine import usable_cores
from potstill.core.remote import RemoteStore, is_address
from potstill.core.runner import Elsewhere, Pulse, Runner, Step
from potstill.core.stage import Artifact, Stage
from potstill.core.store import Store, check_files
from potstill.costs import parse_cluster
from potstill.costs.stages import plan_on
from potstill.distill import extractive as distill_spans
from potstill.errors import MachineError, PotstillError, StoreError, UsageError
from potstill.evaluate import extractive as evaluate_spans
from potstill.export import extractive as export_spans
from potstill.ingest.plan import assumed
from potstill.needs import models_of
from potstill.outlook import Plan, shortages
from potstill.recipe import Recipe
from potstill.run_folder import STORE, Run, open_run, publish, show_card, write_record
from potstill.scale.held import held
from potstill.scale.place import Place, place_of
from potstill.scale.stages import ON_WORKERS

__all__ = [
    "PIPELINE",
    "SPANS",
    "STORE",
    "Run",
    "Watcher",
    "open_run",
    "plan",
    "run",
    "stages_of",
    "steps_of",
    "store_of",
    "verify",
    "write_report",
]

PIPELINE: tuple[Stage, ...] = (
    ingest.STAGE,
    generate.STAGE,
    curate.STAGE,
    distill.CORRECT,
    distill.STAGE,
    evaluate.STAGE,
    export.STAGE,
)

SPANS: tuple[Stage, ...] = (
    *PIPELINE[:4],
    distill_spans.STAGE,
    evaluate_spans.STAGE,
    export_spans.STAGE,
)
"""Of a student that marks answers: the same stages by name and order."""

Watcher = Callable[[dict[str, Any]], None]


def plan(
    recipe: Recipe,
    project: Path | None = None,
    *,
    cluster: str | None = None,
    store: str | None = None,
) -> Plan:
    """What `run` would do now, step by step, with the reason and the expected cost; which models
    it would fetch; what stands in its way. Fetches nothing.

    cluster: also what every stage would take on hardware of that name (8xH100, 2x8xA100-80GB, cpu),
    in `Plan.cluster`. store: as of `run`. Errors: UsageError for a name that is none.
    """
    asked = parse_cluster(cluster) if cluster else None
    steps = steps_of(recipe)
    runner = _runner(recipe, (project or Path.cwd()).resolve(), None, store=store)
    found = _plan(recipe, runner, steps)
    if asked is None:
        return found
    return replace(found, cluster=plan_on(recipe, runner.figures(steps), asked))


def _plan(recipe: Recipe, runner: Runner, steps: list[Step]) -> Plan:
    planned = runner.plan(steps)
    models = models_of(recipe)
    eases = {step.stage.name: step.stage.eases_memory for step in steps}
    short = shortages(planned, models, runner.store.root, eases)
    assumes = assumed(recipe.ingest, runner.project)
    return Plan(tuple(planned), models, tuple(short), assumes)


def run(
    recipe: Recipe,
    project: Path | None = None,
    *,
    until: str | None = None,
    threads: int | None = None,
    watch: Watcher | None = None,
    folder: Path | None = None,
    pulse: Pulse | None = None,
    anyway: bool = False,
    on: str | None = None,
    workers: int | None = None,
    shared: bool = False,
    again: str | None = None,
    store: str | None = None,
) -> Run:
    """Take a recipe through the stages; finished ones are reused, a killed one goes on.

    `until` names the last stage to run. `watch` sees every event as it is written, and `pulse` is
    called several times a second while a stage runs: what either raises stops the run, which goes
    on at the next call. `folder`: the run's own, instead of `runs/<name>` of the project. `anyway`:
    run though memory or disk look too small. `again`: a stage that is run once more, with all after
    it, though they are finished; their results are deleted from the store before.
    `on`: where the work is done: None for this process's machine, `ray` for Ray on this machine's
    cores, `ray://host:port` for a cluster (docs/guides/cluster.md). Then `workers` is the most of
    them at once, `threads` what each may use, and `shared` says that the project folder has the
    same path on all of them. The results are the same.
    `store`: a folder for finished results, or an address
    (s3://bucket/prefix) that they are brought to and fetched from; else $POTSTILL_STORE, else the
    recipe's `store`, else `store/` of the project alone.
    Errors: UnavailableError or MachineError, before anything is done, for what stands in the way;
    PotstillError of the stage that failed; what was finished before stays.
    """
    project = (project or Path.cwd()).resolve()
    steps = steps_of(recipe, until)
    if on is None and (workers is not None or shared):
        raise UsageError("workers and shared say something of a cluster.", "Name it: --on ray")
    place = None
    if on is not None:
        place = place_of(on, shared=shared, workers=workers, threads=threads)
        threads = None
    runner = _runner(recipe, project, threads, pulse, store)
    planned = _plan(recipe, runner, steps)
    for obstacle in planned.obstacles:
        if not (anyway and isinstance(obstacle, MachineError)):
            raise obstacle
    folder = folder or project / "runs" / recipe.name
    with claimed(folder, f"The run {recipe.name}"):
        if again is not None:
            gone = _discard(Run(folder), runner.store, again)
            runner = replace(runner, anew=frozenset(gone))
            planned = _plan(recipe, runner, steps)
        with _elsewhere(place, planned) as elsewhere:
            runner = replace(runner, elsewhere=elsewhere)
            return _run_locked(recipe, runner, steps, Run(folder), watch or _nobody)


@contextmanager
def _elsewhere(place: Place | None, planned: Plan) -> Iterator[Elsewhere | None]:
    """Where stages do their work. A Ray of this machine is held if one is to run that needs it."""
    if place is None:
        yield None
        return
    needed = any(step.name in ON_WORKERS for step in planned if step.action != "reuse")
    with held(place) if needed else nullcontext(place) as found:
        yield found.as_elsewhere()


def _run_locked(
    recipe: Recipe, runner: Runner, steps: list[Step], this: Run, watch: Watcher
) -> Run:
    folder = this.folder
    emitter = Emitter(this.events)
    # What was finished before stays on record until this run has something newer.
    stages = _recorded(this, recipe, runner.store)
    began = time.monotonic()

    def emit(kind: str, **fields: Any) -> None:
        emitter.emit(kind, **fields)
        watch({"stage": "", "kind": kind, **fields})

    def finished(artifact: Artifact, reused: bool) -> None:
        manifest = runner.store.manifest(artifact.stage, artifact.key)
        assert manifest is not None
        if stages.get(artifact.stage, {}).get("key") != artifact.key:
            for name in _later(artifact.stage):  # they were made from another result
                stages.pop(name, None)
        stages[artifact.stage] = {
            "key": artifact.key,
            "digest": artifact.digest,
            "seconds": manifest["seconds"],
            "processor_seconds": manifest["processor_seconds"],
            "peak_memory_bytes": manifest["peak_memory_bytes"],
            "reused": reused,
        }
        write_record(folder, recipe, runner, stages)
        if artifact.stage == "curate":
            show_card(folder, artifact)

    with disk_errors(folder, "write to"):
        write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        write_record(folder, recipe, runner, stages)
        emit("run_started", name=recipe.name, stages=[step.stage.name for step in steps])
    try:
        done = runner.run(steps, this.events, folder / "logs", watch, finished)
        if steps[-1].stage.name == PIPELINE[-1].name:
            publish(folder, done["export"])
            write_report(this)
    except PotstillError as error:
        with disk_errors(folder, "write to"):
            emit("run_failed", error=type(error).__name__, message=error.message)
        raise
    emit("run_finished", seconds=round(time.monotonic() - began, 1))
    return this


def _discard(this: Run, store: Store, first: str) -> tuple[str, ...]:
    """Delete the results of a stage and of those after it; their names. Errors: UsageError,
    StoreError."""
    names = [one.name for one in PIPELINE]
    if first not in names:
        raise UsageError(f"There is no stage {first}.", f"The stages are {', '.join(names)}.")
    try:
        stages = this.record["stages"]
    except (StoreError, OSError, LookupError):
        stages = {}
    if first not in stages:
        raise UsageError(
            f"The run {this.folder.name} has not finished the stage {first} yet.",
            "Run it without --again: it goes on by itself.",
        )
    gone = (first, *_later(first))
    for name in gone:
        if name in stages:
            store.discard(name, stages[name]["key"])
    return gone


def _recorded(this: Run, recipe: Recipe, store: Store) -> dict[str, dict[str, Any]]:
    """The stages that an earlier run of this recipe finished in the same store."""
    try:
        record = this.record
        stages = record["stages"]
        same = (this.store, record["recipe"]) == (
            store.root,
            recipe.model_dump(mode="json"),
        )
    except (StoreError, OSError, LookupError, TypeError):
        return {}  # there is none, or it is damaged and this run writes it anew
    whole = isinstance(stages, dict) and all(isinstance(one, dict) for one in stages.values())
    return dict(stages) if same and whole else {}


def _later(stage: str) -> list[str]:
    names = [one.name for one in PIPELINE]
    return names[names.index(stage) + 1 :]


def _nobody(event: dict[str, Any]) -> None:
    """Watches nothing."""


def write_report(this: Run) -> dict[str, Any]:
    """Write `report.json` and `report.html` of a finished run from its artifacts."""
    from potstill.evaluate.report import build_report  # brings the template engine along

    record = this.record
    artifacts = {stage.name: this.artifact(stage.name).folder / "data" for stage in PIPELINE}
    with disk_errors(this.folder, "write the report to"):
        return build_report(
            this.folder, artifacts, record["stages"], record["recipe"], record["machine"]
        )


def verify(this: Run) -> dict[str, list[str]]:
    """Rehash every artifact of a run. Stage -> what is wrong with it (empty if nothing is)."""
    record = this.record
    store = Store(this.store)
    found: dict[str, list[str]] = {}
    for name, stage in record["stages"].items():
        try:
            manifest = store.manifest(name, stage["key"])
        except StoreError as error:
            found[name] = [error.message]
            continue
        if manifest is None:
            found[name] = [f"{store.folder(name, stage['key'])} is missing"]
            continue
        found[name] = check_files(store.folder(name, stage["key"]), manifest, rehash=True)
    return found


def steps_of(recipe: Recipe, until: str | None = None) -> list[Step]:
    """The stages that the recipe goes through, each with its section. Errors: UsageError."""
    names = [stage.name for stage in PIPELINE]
    if until is not None and until not in names:
        raise UsageError(f"There is no stage {until}.", f"The stages are {', '.join(names)}.")
    last = names.index(until) if until else len(names) - 1
    return [Step(stage, getattr(recipe, stage.name)) for stage in stages_of(recipe)[: last + 1]]


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's task."""
    return SPANS if recipe.task == "spans" else PIPELINE


def _runner(
    recipe: Recipe,
    project: Path,
    threads: int | None,
    pulse: Pulse | None = None,
    store: str | None = None,
) -> Runner:
    if not project.is_dir():
        raise UsageError(f"The project folder {project} does not exist.")
    named = store or os.environ.get(STORE) or recipe.store
    return Runner(
        store_of(project, named),
        project,
        recipe.seed,
        threads or usable_cores(),
        pulse or (lambda: None),
        remote=RemoteStore(named) if named and is_address(named) else None,
    )


def store_of(project: Path, named: str | None = None) -> Store:
    """Where the finished results of that project are on this machine.

    named: a folder, or an address, which is a copy elsewhere; None: what $POTSTILL_STORE says.
    """
    named = os.environ.get(STORE) if named is None else named
    if not named or is_address(named):
        return Store((project / "store").resolve())
    return Store(Path(named).resolve())
