"""A run's folder: what stands in it, where its results are, and what is shown of them there.

In: a folder, or a run's name. Out: `Run`, which reads it; hard links to finished results. Knows no
stage by name but those whose files are shown, and starts nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors, folder_files, read_json, write_json
from potstill.core.machine import describe
from potstill.core.runner import Runner
from potstill.core.stage import Artifact
from potstill.core.store import Store
from potstill.errors import StoreError, UsageError
from potstill.recipe import Recipe
from potstill.serve.versions import Versions

STORE = "POTSTILL_STORE"
"""The environment's name of the store: a folder or an address."""


@dataclass(frozen=True)
class Run:
    """A run's folder and what is known of it."""

    folder: Path

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def record(self) -> dict[str, Any]:
        """`run.json`: the stages' keys, times and states."""
        record = read_json(self.folder / "run.json")
        if not isinstance(record, dict):
            raise StoreError(f"{self.folder / 'run.json'} is damaged.", "Run the recipe again.")
        return record

    @property
    def task(self) -> str:
        """What the student does: text or spans."""
        return str(self.record["recipe"].get("task", "text"))

    @property
    def report(self) -> dict[str, Any]:
        """`report.json`, as the design describes it. Errors: StoreError if the run has none."""
        path = self.folder / "report.json"
        if not path.exists():
            raise StoreError(
                f"The run {self.folder.name} has no report yet.",
                "It is written at the end of a run: run its recipe again to finish it.",
            )
        report = read_json(path)
        assert isinstance(report, dict)
        return report

    @property
    def project(self) -> Path:
        """The project's folder: the one that the run's folder stands in, since that may have been
        moved, or be mounted elsewhere in a container; of a run kept apart the recorded one."""
        recorded, folder = Path(self.record["project"]), self.folder.resolve()
        if folder.parent.name != "runs":
            return recorded
        here = folder.parents[1]
        return here if (here / "store").is_dir() or not recorded.is_dir() else recorded

    @property
    def store(self) -> Path:
        """Where its results are: in its project, or where POTSTILL_STORE said when it was made, or
        says now if that is gone."""
        record = self.record
        recorded = Path(record["store"])
        if recorded.is_relative_to(record["project"]):
            return self.project / recorded.relative_to(record["project"])
        if not recorded.is_dir() and (named := os.environ.get(STORE)):
            return Path(named).resolve()
        return recorded

    def artifact(self, stage: str) -> Artifact:
        """A finished stage of this run."""
        record = self.record
        if stage not in record["stages"]:
            raise StoreError(
                f"The run {self.folder.name} has not finished the stage {stage} yet.",
                f"Finish it with: potstill run {self.folder / 'recipe.yaml'}",
            )
        store = Store(self.store)
        key = record["stages"][stage]["key"]
        artifact = store.find(stage, key)
        if artifact is None:
            raise StoreError(
                f"The result {stage} {key[:12]} of the run {self.folder.name} is gone from "
                f"{store.root}.",
                f"Make it again with: potstill run {self.folder / 'recipe.yaml'}",
            )
        return artifact

    def exported(self, name: str | None = None) -> Path:
        """An exported file of this run, GGUF, or ONNX of a student that marks answers: the one of
        that name, else the smallest."""
        kind = "*.onnx" if self.task == "spans" else "*.gguf"
        files = sorted((self.folder / "export").glob(kind), key=lambda one: one.stat().st_size)
        if not files:
            raise StoreError(
                f"The run {self.folder.name} has no exported student yet.",
                f"Finish it with: potstill run {self.folder / 'recipe.yaml'}",
            )
        chosen = [one for one in files if name in (None, one.name, one.stem)]
        if not chosen:
            names = ", ".join(one.name for one in files)
            raise UsageError(f"The run has no exported file {name}.", f"It has {names}.")
        return chosen[0]


def versions_of(this: Run) -> Versions:
    """The versions of a run's student."""
    return Versions(this.folder / "serve", this.folder.resolve().name)


def version_of(this: Run, name: str) -> Run:
    """The run of that name in the run's project, of a version of its student; or the run itself.

    Errors: UsageError if it is gone.
    """
    return this if name == this.folder.resolve().name else open_run(name, this.project)


def open_run(name: str | Path, project: Path | None = None) -> Run:
    """The run of that folder or name. Errors: UsageError names the runs that there are."""
    project = project or Path.cwd()
    for folder in (Path(name), project / "runs" / str(name)):
        if (folder / "run.json").is_file():
            return Run(folder)
    known = sorted(path.parent.name for path in (project / "runs").glob("*/run.json"))
    hint = f"Runs here: {', '.join(known)}." if known else "Start one with: potstill run quickstart"
    raise UsageError(f"There is no run {name}.", hint)


def write_record(
    folder: Path, recipe: Recipe, runner: Runner, stages: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write `run.json`: what was run, where, and which results came of it so far."""
    write_json(
        folder / "run.json",
        {
            "name": recipe.name,
            "project": str(runner.project),
            "store": str(runner.store.root),
            "seed": recipe.seed,
            "machine": describe(),
            "stages": stages,
            "recipe": recipe.model_dump(mode="json"),
        },
    )


def show_card(folder: Path, curated: Artifact) -> None:
    """Show the data card in the run's folder as soon as there is one."""
    target, building = folder / "data-card.html", folder / ".data-card.part"
    with disk_errors(target, "write"):
        building.unlink(missing_ok=True)
        _link(curated.path("card.html"), building)
        building.replace(target)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, place)


def publish(folder: Path, exported: Artifact) -> None:
    """Show the exported files in the run's folder as hard links: no copy, no second truth."""
    target, building = folder / "export", folder / ".export.part"
    with disk_errors(target, "write"):
        shutil.rmtree(building, ignore_errors=True)
        for relative in folder_files(exported.folder / "data"):
            place = building / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(exported.path(relative.as_posix()), place)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
