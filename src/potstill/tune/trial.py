"""One trial: its recipe taken through the stages, watched, given up if it is poor.

In: a `Trial` with its values, the folder for its diary, a way to be stopped. Out: the trial ended
in the study's file, with its figures or the reason for none. Knows nothing of other trials.

Trials share the project's store, so what their values do not touch is there already. A trial that
needs the student alone ends when it is trained: the stage is stopped before it trains the model for
comparison, and its draft is kept, from which `potstill run best.yaml` goes on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill import pipeline
from potstill.core.events import read_events
from potstill.core.files import read_json
from potstill.core.stage import Artifact
from potstill.core.store import Store
from potstill.distill.outcome import student_is_trained, student_outcome, validation_of
from potstill.errors import MissingExtraError, PotstillError, StoreError, TrainingError
from potstill.tune import figures
from potstill.tune.figures import FIGURES
from potstill.tune.study import Study
from potstill.tune.trials import Trial, Trials

BEFORE_DISTILL = "correct"
NOT_ITS_FAULT = (StoreError, MissingExtraError)
"""Errors that any trial would meet now: a full disk, a missing package. They stop the study."""


class _Poor(Exception):  # noqa: N818 (it stops a stage; nothing went wrong)
    """The trial's validations say that it is not worth going on."""


class _Trained(Exception):  # noqa: N818
    """The student is trained, and nothing more is needed of the stage."""


@dataclass
class Worker:
    """What every trial of a sitting is given."""

    study: Study
    trials: Trials
    project: Path
    folder: Path
    threads: int
    pulse: Callable[[], None]
    """Raises to stop the trial; it stays under way in the study's file."""
    watch: Callable[[dict[str, Any]], None]
    _early: threading.Lock = field(default_factory=threading.Lock)

    def run(self, trial: Trial) -> None:
        """Compute the trial and end it. Errors: those of `NOT_ITS_FAULT`, and what `pulse` raises;
        then the trial is not ended."""
        began = time.monotonic() - trial.notes.get("seconds", 0.0)
        watcher = _Watcher(self, trial)
        try:
            found = self._figures(trial, watcher)
            for name in self.study.config.objective:
                if not math.isfinite(found.get(name, math.nan)):
                    raise TrainingError(f"{FIGURES[name].title} could not be measured.")
        except _Poor:
            self.trials.note(trial.number, "reason", watcher.reason)
            self._end(trial, "pruned", began)
        except NOT_ITS_FAULT:
            raise
        except PotstillError as error:
            self.trials.note(trial.number, "reason", error.message)
            self.trials.note(trial.number, "hint", error.hint)
            self._end(trial, "failed", began)
        except BaseException:
            self.trials.note(trial.number, "seconds", time.monotonic() - began)
            raise
        else:
            self.trials.note(trial.number, "figures", found)
            self._end(trial, "complete", began, found)

    def _end(
        self, trial: Trial, state: Any, began: float, found: dict[str, float] | None = None
    ) -> None:
        self.trials.note(trial.number, "seconds", round(time.monotonic() - began, 1))
        self.trials.end(trial.number, state, found)

    def _figures(self, trial: Trial, watcher: _Watcher) -> dict[str, float]:
        """Every figure that the trial's stages measured."""
        level = figures.needed_level(self.study.config.objective)
        recipe = self.study.recipe_of(trial.values)
        folder = self.folder / f"{trial.number:04d}"
        store = pipeline.store_of(self.project)

        def until(stage: str) -> pipeline.Run:
            return pipeline.run(
                recipe,
                self.project,
                until=stage,
                threads=self.threads,
                watch=watcher,
                folder=folder,
                pulse=self.pulse,
            )

        try:
            if BEFORE_DISTILL not in self.study.shared_stages:
                with self._alone():
                    until(BEFORE_DISTILL)
            run = until(self.study.until)
        except _Trained:
            outcome = student_outcome(store.root / "distill" / f"{watcher.draft}.draft")
            self._report_rest(trial, outcome.validation)
            return figures.student_figures(outcome)
        distilled = run.artifact("distill")
        outcome = student_outcome(distilled.folder)
        self._report_rest(trial, outcome.validation)
        found = figures.student_figures(outcome)
        if level != "student":
            seconds = _seconds(run, distilled, store)
            found |= {} if seconds is None else {"seconds": round(seconds, 1)}
        if level == "evaluate":
            results = read_json(run.artifact("evaluate").path("results.json"))
            found |= figures.evaluated_figures(results)
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One trial at a time: two may need the same rows or teacher, and one alone makes them."""
        while not self._early.acquire(timeout=0.2):
            self.pulse()
        try:
            yield
        finally:
            self._early.release()

    def _report_rest(self, trial: Trial, validation: list[dict[str, float]]) -> None:
        """Validations that no event told of: of a student that was trained before."""
        name = next(iter(self.study.config.objective))
        if figures.is_validation(name):
            figure = FIGURES[name]
            for row in validation:
                self.trials.report(trial.number, int(row["step"]), figure.form(row[figure.source]))


def _seconds(run: pipeline.Run, distilled: Artifact, store: Store) -> float | None:
    manifest = store.manifest("distill", distilled.key)
    return figures.stage_seconds(read_events(run.events)[0], manifest or {"resumed": True})


class _Watcher:
    """Sees a trial's events: reports its validations, and stops it when it is time to."""

    def __init__(self, worker: Worker, trial: Trial) -> None:
        self.worker, self.number = worker, trial.number
        config = worker.study.config
        self.objective = next(iter(config.objective))
        self.prunes = config.prune is not None
        self.only_student = figures.needed_level(config.objective) == "student"
        self.draft: str | None = trial.notes.get("draft")
        self.validations = 0
        self.reason = ""

    def __call__(self, event: dict[str, Any]) -> None:
        self.worker.watch({**event, "trial": self.number})
        if event["stage"] != "distill":
            return
        if event["kind"] == "started" and self.draft != event["key"]:
            if event["resumed"] and self.draft is None:  # another run's, or another study's
                self.worker.trials.note(self.number, "found", True)
            self.draft = event["key"]
            self.worker.trials.note(self.number, "draft", self.draft)
        found = validation_of(event)
        if found is not None:
            self._validated(*found)
        if self.only_student and student_is_trained(event):
            raise _Trained

    def _validated(self, name: str, step: int, value: float) -> None:
        figure = FIGURES[self.objective]
        if not figures.is_validation(self.objective) or name != figure.source:
            return
        value = figure.form(value)
        self.worker.trials.report(self.number, step, value)
        self.worker.watch(
            {
                "stage": "",
                "kind": "validated",
                "trial": self.number,
                "step": step,
                "name": self.objective,
                "value": value,
            }
        )
        if self.prunes and self.worker.trials.is_poor(self.number):
            share = self.worker.study.config.prune
            assert share is not None
            self.reason = (
                f"{self.objective} {value:.4g} at step {step}: not among the best "
                f"{100 * share.keep:.0f}% of the trials there"
            )
            raise _Poor
