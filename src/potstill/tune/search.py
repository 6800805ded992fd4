"""A study from its first trial to its last, through kills: who begins when, and what is kept.

In: a `Study`, a project folder. Out: `studies/<name>/` with study.db, the trials' diaries, the best
recipe (for two figures: the Pareto front's), status.json and report.html. Knows nothing of how a
trial is computed (`trial.py`) or suggested (`trials.py`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from potstill import pipeline
from potstill.core.claims import claimed
from potstill.core.files import write_json
from potstill.core.machine import usable_cores
from potstill.errors import StoreError, TrainingError
from potstill.tune.slots import Watcher, trials_at_once
from potstill.tune.study import STATUS, Study
from potstill.tune.trial import Worker
from potstill.tune.trials import Trial, Trials

FIRST_FAILURES = 3
"""So many failed trials and not one good: the study itself is wrong, and stops."""
PAUSE = 0.2


@dataclass(frozen=True)
class Finished:
    """A study's folder and what came of it so far. `best`: the best trial, or the Pareto front;
    `recipes`: their recipes, ready for `potstill run`."""

    folder: Path
    trials: list[Trial]
    best: list[Trial]
    recipes: list[Path]
    complete: bool
    """Whether all its trials are done; else the same call goes on."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "folder": str(self.folder),
            "complete": self.complete,
            "best": [one.number for one in self.best],
            "recipes": [str(one) for one in self.recipes],
            "trials": [asdict(one) for one in self.trials],
        }


class _Stop(Exception):  # noqa: N818 (it stops a trial; nothing went wrong)
    """The sitting ends: Ctrl-C, its time is over, or a trial met what stops the study."""


def run_study(
    study: Study, project: Path | None = None, *, watch: Watcher | None = None
) -> Finished:
    """Search until the study has all its trials or its minutes are over; a killed one goes on.

    `watch` sees every event of every trial, with the trial's number under `trial`, and those of the
    search itself: trial_started, validated, trial_finished, study_warning. It may be called from
    several threads, one at a time.
    Errors: UsageError if the study was begun with another recipe, space or objective; StoreError;
    TrainingError if the first three trials fail; what the stages before the first trial raise.
    """
    project = (project or Path.cwd()).resolve()
    folder = folder_of(study, project)
    with claimed(folder, f"The study {study.config.name}"):
        trials = Trials(study, folder / "study.db")
        try:
            return _Search(study, trials, project, folder, watch or (lambda event: None)).run()
        finally:
            trials.close()


def read_study(study: Study, project: Path | None = None) -> Finished:
    """What a study came to so far, its recipes and its page written anew. Starts nothing.

    Errors: StoreError if the study was never begun; UsageError if it was begun differently.
    """
    project = (project or Path.cwd()).resolve()
    folder = folder_of(study, project)
    if not (folder / "study.db").is_file():
        raise StoreError(
            f"The study {study.config.name} has not begun: there is no {folder / 'study.db'}.",
            "Begin it with: potstill tune STUDY",
        )
    trials = Trials(study, folder / "study.db")
    try:
        return finish(study, trials, folder)
    finally:
        trials.close()


def folder_of(study: Study, project: Path) -> Path:
    """Where the study is kept."""
    return project / "studies" / study.config.name


def finish(study: Study, trials: Trials, folder: Path) -> Finished:
    """Write the best recipes and the page of what there is so far."""
    from potstill.tune.page import write_page
    from potstill.tune.recipes import write_recipes

    everything, best = trials.all(), trials.best()
    recipes = write_recipes(study, best, folder)
    write_page(study, everything, best, trials.importance(), folder)
    states = Counter(one.state for one in everything)
    write_json(folder / STATUS, {"trials": study.config.trials, **states})
    ended = len(everything) - states["running"]
    return Finished(folder, everything, best, recipes, ended >= study.config.trials)


@dataclass
class _Search:
    study: Study
    trials: Trials
    project: Path
    folder: Path
    watch: Watcher
    _running: dict[Future[None], Trial] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _watching: threading.Lock = field(default_factory=threading.Lock)
    _deadline: float = float("inf")
    _left: set[str] = field(default_factory=set)
    """Drafts that others work on."""

    def run(self) -> Finished:
        config = self.study.config
        if config.minutes is not None:
            self._deadline = time.monotonic() + 60 * config.minutes
        try:
            self._share_stages()
            self._search(trials_at_once(self.study, self.project, self._watch))
        except _Stop:
            pass  # its time was over
        return finish(self.study, self.trials, self.folder)

    def _watch(self, event: dict[str, Any]) -> None:
        with self._watching:
            self.watch(event)

    def _pulse(self) -> None:
        if self._stopped.is_set() or time.monotonic() > self._deadline:
            raise _Stop

    def _share_stages(self) -> None:
        """Compute what all trials have in common before the first of them, so that no two do, and
        check that it is what earlier sittings had."""
        stages = self.study.shared_stages
        if not stages:
            return
        run = pipeline.run(
            self.study.recipe,
            self.project,
            until=stages[-1],
            watch=self._watch,
            folder=self.folder / "shared",
            pulse=self._pulse,
        )
        self.trials.check("data", {f"result of {one}": run.artifact(one).digest for one in stages})

    def _search(self, slots: int) -> None:
        waiting = self.trials.interrupted()
        worker = Worker(
            self.study,
            self.trials,
            self.project,
            self.folder / "trials",
            max(1, usable_cores() // slots),
            self._pulse,
            self._watch,
        )
        with ThreadPoolExecutor(slots) as pool:
            try:
                while True:
                    while len(self._running) < slots and self._may_begin(waiting):
                        trial = waiting.pop(0) if waiting else self.trials.suggest()
                        self._begin(pool, worker, trial)
                    if not self._running:
                        break
                    done, _ = wait(self._running, timeout=PAUSE, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._settle(future)
            finally:
                self._stopped.set()

    def _may_begin(self, waiting: list[Trial]) -> bool:
        if time.monotonic() > self._deadline:
            return False
        return bool(waiting) or len(self.trials.all()) < self.study.config.trials

    def _begin(self, pool: ThreadPoolExecutor, worker: Worker, trial: Trial) -> None:
        goes_on = bool(trial.curve) or "draft" in trial.notes
        self._watch(
            {
                "stage": "",
                "kind": "trial_started",
                "trial": trial.number,
                "values": trial.values,
                "goes_on": goes_on,
            }
        )
        self._running[pool.submit(self._compute, worker, trial)] = trial

    def _compute(self, worker: Worker, trial: Trial) -> None:
        twin = self._twin(trial)
        if twin is None:
            worker.run(trial)
            return
        self.trials.note(trial.number, "reason", f"the same values as trial {twin.number}")
        for name in ("draft", "figures"):
            if name in twin.notes:
                self.trials.note(trial.number, name, twin.notes[name])
        for step, value in twin.curve:
            self.trials.report(trial.number, step, value)
        self.trials.end(trial.number, twin.state, twin.figures or None)

    def _twin(self, trial: Trial) -> Trial | None:
        """An earlier trial of the same values, once it has ended."""
        while True:
            twins = [
                one
                for one in self.trials.all()
                if one.values == trial.values and one.number < trial.number
            ]
            if not twins:
                return None
            if twins[0].state != "running":
                return twins[0]
            self._pulse()
            time.sleep(PAUSE)

    def _settle(self, future: Future[None]) -> None:
        """Take note of a trial that ended. Errors: what stops the study."""
        number = self._running.pop(future).number
        try:
            future.result()
        except _Stop:
            return
        everything = self.trials.all()
        ended = next(one for one in everything if one.number == number)
        best = self.trials.best()
        self._tidy(everything, {one.number for one in best})
        finish(self.study, self.trials, self.folder)
        self._watch(
            {
                "stage": "",
                "kind": "trial_finished",
                "trial": number,
                "state": ended.state,
                "figures": ended.figures,
                "notes": ended.notes,
                "values": ended.values,
                "curve": ended.curve,
                "best": [one.number for one in best],
                "ended": sum(one.state != "running" for one in everything),
            }
        )
        failed = [one for one in everything if one.state == "failed"]
        settled = [one for one in everything if one.state != "running"]
        if len(failed) == len(settled) >= FIRST_FAILURES:
            raise TrainingError(
                f"The first {len(failed)} trials of the study failed; the last one: "
                f"{ended.notes.get('reason', 'no reason is known')}",
                str(ended.notes.get("hint", "")) or "Mend the recipe or the space.",
            )

    def _tidy(self, everything: list[Trial], best: set[int]) -> None:
        """Delete the drafts of students that are not the best: each is several times a model. What
        was there before its trial, or is another run's by now, is not the study's to delete."""
        store = pipeline.store_of(self.project)
        begun = [one for one in everything if "draft" in one.notes]
        kept = self._left | {
            one.notes["draft"]
            for one in begun
            if one.number in best or one.state == "running" or "found" in one.notes
        }
        for draft in {str(one.notes["draft"]) for one in begun} - kept:
            if not store.has_draft("distill", draft):
                continue
            try:
                store.discard_draft("distill", draft)
            except StoreError as error:
                if not isinstance(error.__cause__, Timeout):
                    raise
                self._left.add(draft)
