"""One improvement from beginning to end: rows, recipe, run, gate.

In: a finished run with accepted feedback, settings. Out: a candidate, which is an ordinary run of
the same project, and what the gate says of it, noted in the run's versions.json. The same call
again goes on with a candidate that was not finished. Nothing is promoted here (`promotion.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill import pipeline
from potstill.core.claims import claimed
from potstill.core.files import read_json, read_records, write_atomic
from potstill.curate.split import Split
from potstill.errors import InputError, RecipeError, StoreError, UsageError
from potstill.evaluate.gate import check_metric, gate
from potstill.improve import rows
from potstill.improve.asking import asking
from potstill.improve.candidates import Gathered, gather
from potstill.improve.config import ImproveConfig
from potstill.improve.recipe import improved
from potstill.models.corrected import corrected
from potstill.models.spans.rows import REFUSAL, passages
from potstill.pipeline import Run, Watcher
from potstill.recipe import Recipe
from potstill.records import Example
from potstill.run_folder import version_of, versions_of
from potstill.serve.feedback import read_feedback

FOLDER = "improve"
"""In a candidate's run folder: its rows, about.json, recipe.yaml."""
LEAST_TARGET = 2
OWN = ("name", "curate.prepared", "distill.student.model")
"""Fields that make it an improvement."""


@dataclass(frozen=True)
class Prepared:
    """A candidate that could be run: its name, its recipe (a file too), what its rows are."""

    name: str
    recipe: Recipe
    file: Path
    about: Mapping[str, Any]
    origin: str
    """The version that it begins from and is compared with."""


@dataclass(frozen=True)
class Improved:
    """A candidate that was run, and what the gate says of it (`evaluate.gate`)."""

    run: Run
    prepared: Prepared
    gate: Mapping[str, Any]


def improve(
    this: Run,
    config: ImproveConfig | None = None,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
    metric: str = "f1",
    threads: int | None = None,
    watch: Watcher | None = None,
    anyway: bool = False,
    begun: Callable[[Prepared], None] = lambda prepared: None,
) -> Improved:
    """Train a candidate on accepted feedback and a replay of old rows, and judge it.

    this: a finished run. name: of the candidate; default: RUN-2, RUN-3 ..., or the one that was not
    finished. overrides: of its recipe, as `--set` takes them. metric: the one that must get better
    on the held-out feedback. begun: told once the rows and the recipe are there.
    Errors: UsageError, InputError and StoreError before anything is trained, for what stands in the
    way; those of `pipeline.run`.
    """
    check_metric(metric)
    prepared = prepare(this, config, name=name, overrides=overrides)
    begun(prepared)
    project = this.project
    run = pipeline.run(prepared.recipe, project, threads=threads, watch=watch, anyway=anyway)
    verdict = judged(run, prepared.about, metric)
    verdict["tries"] = 1 + len(_earlier(this, prepared))
    export = run.record["stages"]["export"]["key"]
    versions_of(this).add_candidate(
        prepared.name, origin=prepared.origin, export=export, gate=verdict
    )
    return Improved(run, prepared, verdict)


def _earlier(this: Run, prepared: Prepared) -> list[str]:
    """Candidates that were judged against the same version before, by some of the same target."""
    project, target = this.project, set(prepared.about["target"])
    found = []
    for name, one in versions_of(this).read()["candidates"].items():
        about = _about(project / "runs" / name / FOLDER)
        if name != prepared.name and one["from"] == prepared.origin and about:
            found += [name] if target & set(about["target"]) else []
    return found


def judged(run: Run, about: Mapping[str, Any], metric: str = "f1") -> dict[str, Any]:
    """What the gate says of a finished candidate. about: of its rows."""
    settings = run.report["settings"]
    with run.artifact("evaluate").path("predictions.jsonl").open(encoding="utf-8") as file:
        return gate(
            (json.loads(line) for line in file if line.strip()),
            about["target"],
            metric=metric,
            seed=settings["seed"],
            resamples=settings["resamples"],
            level=settings["level"],
        )


def prepare(
    this: Run,
    config: ImproveConfig | None = None,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
) -> Prepared:
    """The rows and the recipe of a candidate, in runs/NAME/improve. Trains nothing.

    Rows that an unfinished candidate of the same settings has are kept, so that its training goes
    on. Errors: as `improve`.
    """
    config = config or ImproveConfig()
    project = this.project
    _check_finished(this)
    name = name or _next_name(this, project)
    _check_name(this, name, project)
    folder = project / "runs" / name / FOLDER
    serving = versions_of(this).current()
    parent = version_of(this, serving.version)
    about = _about(folder)
    settings = config.model_dump(mode="json")
    mixture = None
    if about is None or (about["settings"], about["origin"]) != (settings, serving.version):
        mixture = _mixture(this, parent, config)
        mixture.about |= {"run": versions_of(this).name, "origin": serving.version}
        about = mixture.about
    with claimed(folder.parent, f"The run {name}"):  # no rows are changed under a running one
        if mixture is not None:
            rows.write(mixture, folder)
        recipe = _recipe(this, parent, name, config, overrides, folder)
    return Prepared(name, recipe, folder / "recipe.yaml", about, serving.version)


def _check_finished(this: Run) -> None:
    if (about := _about(this.folder / FOLDER)) is not None:
        raise UsageError(
            f"{this.folder.name} is itself a candidate for {about['run']}.",
            f"Feedback is kept there: potstill improve {about['run']}",
        )
    _ = this.report
    for stage in ("curate", "correct", "evaluate", "export"):
        this.artifact(stage)


def _next_name(this: Run, project: Path) -> str:
    """The candidate that was begun and not judged, else the next free number."""
    run, judged_ones = versions_of(this).name, versions_of(this).read()["candidates"]
    number = 2
    while True:
        name = f"{run}-{number}"
        about = _about(project / "runs" / name / FOLDER)
        there = (project / "runs" / name).exists()
        if not there or (about is not None and about["run"] == run and name not in judged_ones):
            return name
        number += 1


def _check_name(this: Run, name: str, project: Path) -> None:
    """Errors: UsageError for a run that is no candidate of this one, or serves or served it."""
    folder = project / "runs" / name
    about = _about(folder / FOLDER)
    if folder.exists() and (about is None or about["run"] != versions_of(this).name):
        raise UsageError(f"There is a run {name}, which is no candidate.", "Choose another --name.")
    if any(one["version"] == name for one in versions_of(this).read()["serving"]):
        raise UsageError(f"{name} serves, or rollback leads to it.", "Choose another --name.")


def _about(folder: Path) -> dict[str, Any] | None:
    path = folder / rows.ABOUT
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged.", "Remove the folder, and improve again.")
    return found


def _mixture(this: Run, parent: Run, config: ImproveConfig) -> rows.Mixture:
    """All rows. Errors: InputError where there is too little feedback."""
    recipe = this.record["recipe"]
    curated = this.artifact("curate")
    splits: tuple[Split, ...] = ("train", "validation", "test")
    old = {split: list(read_records(curated.path(f"{split}.jsonl"), Example)) for split in splits}
    limit = recipe["evaluate"].get("max_examples")
    old["test"] = sorted(old["test"], key=lambda row: row.id)[:limit]
    refusal = next((row.answers[0] for row in old["train"] if row.kind == REFUSAL), "")
    gathered = gather(
        read_feedback(this.folder / "serve" / "feedback.sqlite"),
        asking(this),
        refusal=refusal or str(recipe["ingest"]["rows"]["refusal"]),
        spans=this.task == "spans",
        mask=config.mask or recipe["curate"]["personal_data"] == "mask",
    )
    known = passages(this.artifact("ingest"))
    tested = (_about(parent.folder / FOLDER) or {}).get("held_out", ())
    mixture = rows.mix(old, gathered, known, tested, config, int(this.record["seed"]))
    _check_enough(this, gathered, mixture, config)
    return mixture


def _check_enough(
    this: Run, gathered: Gathered, mixture: rows.Mixture, config: ImproveConfig
) -> None:
    review = f"potstill feedback {this.folder.name}"
    usable, left = len(gathered.candidates), dict(gathered.left)
    waiting = left.pop("not_accepted", 0)
    if not usable and not left:
        raise InputError(
            f"There is no accepted feedback on {this.folder.name}"
            + (f"; {waiting} rows are not accepted." if waiting else " yet."),
            f"Review it first: {review} --accept ID" if waiting else f"See it with: {review}",
        )
    if usable < config.fewest:
        also = ", ".join(f"{number} {reason}" for reason, number in sorted(left.items()))
        raise InputError(
            f"{usable} accepted questions are fewer than the {config.fewest} that an improvement "
            f"needs" + (f" (left out: {also})." if also else "."),
            f"Review more: {review} --accept ID; or lower --fewest.",
        )
    target, train = len(mixture.target), len(mixture.about["feedback"]["train"])
    if target < LEAST_TARGET or not train:
        raise InputError(
            f"Of {usable} accepted questions {target} are held out that no version was judged by "
            f"yet, and {train} are to learn from; {LEAST_TARGET} and 1 are needed.",
            f"Review more: {review} --accept ID; or change --held-out.",
        )


def _recipe(
    this: Run,
    parent: Run,
    name: str,
    config: ImproveConfig,
    overrides: Sequence[str],
    folder: Path,
) -> Recipe:
    """The candidate's recipe, kept in `folder` with its overrides put in. Errors: RecipeError."""
    recipe = this.record["recipe"]
    plain = improved(
        recipe,
        name=name,
        student=str(parent.artifact("export").path("safetensors")),
        teacher=corrected(this.artifact("correct"), recipe["correct"]["teacher"]),
        rows=(folder.relative_to(this.project)).as_posix(),
        mask=config.mask,
        parent=this.folder.resolve().name,
    )
    file = folder / "recipe.yaml"
    write_atomic(file, str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)))
    before, loaded = Recipe.load(file), Recipe.load(file, overrides)
    for field in OWN:
        if _value(before, field) != _value(loaded, field):
            raise RecipeError(f"--set {field} cannot be changed: it makes this an improvement.")
    write_atomic(file, loaded.to_yaml())
    return loaded


def _value(recipe: Recipe, field: str) -> Any:
    value: Any = recipe
    for name in field.split("."):
        value = getattr(value, name)
    return value
