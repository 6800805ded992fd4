"""The trials of a study in its SQLite file: suggested, reported, ended; Optuna behind a few words.

In: a `Study`, the file. Out: `Trial`s, old and new. Knows nothing of how a trial is computed.

The suggestion for the n-th trial is drawn with a seed made of the study's seed and n, so it depends
on the trials before it alone, and a study that was killed suggests what an undisturbed one would.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from potstill.core.keys import changed_parts
from potstill.errors import StoreError, UsageError
from potstill.tune.space import Dimension
from potstill.tune.study import Study

State = Literal["running", "complete", "pruned", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
VOID = "void"  # of a trial that was killed before its values were drawn; it does not count
_OPTUNA = {one: state for state, one in STATES.items()}


@dataclass(frozen=True)
class Trial:
    """One trial. `values`: of the searched fields. `figures`: of the objective, by name; empty
    unless it is complete. `curve`: its validations in order, optimizer step and objective.
    `notes`: whatever was written down about it (seconds, reason, all its figures ...)."""

    number: int
    state: State
    values: dict[str, Any]
    figures: dict[str, float]
    curve: list[tuple[int, float]]
    notes: dict[str, Any]


class Trials:
    """A study's trials. Its methods may be called from several threads.

    Errors of opening: StoreError for a file that is damaged; UsageError if the file belongs to a
    study with another recipe, space or objective.
    """

    def __init__(self, study: Study, file: Path) -> None:
        self.study = study
        self._lock = threading.RLock()
        self._distributions = {one.field: _distribution(one) for one in study.dimensions}
        self._dimensions = {one.field: one for one in study.dimensions}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        url = sqlalchemy.engine.URL.create("sqlite", database=str(file))
        config = study.config
        try:
            self._storage = optuna.storages.RDBStorage(
                url.render_as_string(hide_password=False),
                # A connection is closed when it is given back, also if the file is of no use.
                {"poolclass": sqlalchemy.pool.NullPool},
            )
            sqlalchemy.event.listen(self._storage.engine, "connect", _write_ahead)
            self._storage.remove_session()
            self._storage.engine.dispose()  # of connections from before that
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=config.name,
                directions=list(config.objective.values()),
                pruner=_pruner(study),
                load_if_exists=True,
            )
        except (sqlalchemy.exc.DatabaseError, RuntimeError, optuna.exceptions.OptunaError) as error:
            raise StoreError(
                f"The study's file {file} cannot be read ({str(error).splitlines()[0][:200]}).",
                f"Delete it to begin the study anew: rm '{file}'",
            ) from error
        try:
            self.check("definition", study.definition)
        except UsageError:
            self.close()
            raise

    def check(self, name: str, value: Any) -> None:
        """Note something that all trials must have in common, or compare it with the note."""
        known = self._study.user_attrs.get(name)
        value = json.loads(json.dumps(value))
        if known is None:
            self._study.set_user_attr(name, value)
        elif known != value:
            changed = changed_parts(known, value)
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            config = self.study.config
            raise UsageError(
                f"The study {config.name} was begun with another {', '.join(changed[:3])}{more}; "
                "its trials cannot be compared with new ones.",
                f"Change it back, give the study another name, or delete the folder "
                f"studies/{config.name}.",
            )

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def all(self) -> list[Trial]:
        """Every trial that counts, in the order in which they began."""
        with self._lock:
            frozen = self._study.get_trials(deepcopy=False)
        return [self._trial(one) for one in frozen if VOID not in one.user_attrs]

    def best(self) -> list[Trial]:
        """The complete trials that no other one betters: one, or for two figures the Pareto
        front; in the order of the first figure."""
        complete = [one for one in self.all() if one.state == "complete"]
        signs = {
            name: 1 if direction == "minimize" else -1
            for name, direction in self.study.config.objective.items()
        }
        front = pareto(
            {
                one.number: tuple(sign * one.figures[name] for name, sign in signs.items())
                for one in complete
            }
        )
        chosen = [one for one in complete if one.number in front]
        first, sign = next(iter(signs.items()))
        return sorted(chosen, key=lambda one: (sign * one.figures[first], one.number))

    def interrupted(self) -> list[Trial]:
        """Trials that a killed or stopped sitting left under way, to be gone on with."""
        left = []
        for trial in self.all():
            if trial.state != "running":
                continue
            if set(trial.values) == set(self._distributions):
                left.append(trial)
            else:  # killed between two of its values
                self.note(trial.number, VOID, True)
                self.end(trial.number, "failed")
        return left

    def suggest(self) -> Trial:
        """Begin a new trial."""
        with self._lock, _quiet():
            self._study.sampler = _sampler(self.study, len(self.all()))
            asked = self._study.ask(self._distributions)
            return self._trial(self._storage.get_trial(asked._trial_id))

    def report(self, number: int, step: int, value: float) -> None:
        """Note a validation; one whose optimizer step is noted already is passed over.

        The one before the first step is no merit of the trial, and not shown to the pruner.
        """
        with self._lock:
            trial = self._frozen(number)
            curve = trial.user_attrs.get("curve", [])
            if any(known == step for known, _ in curve):
                return
            self.note(number, "curve", [*curve, [step, value]])
            if step > 0:
                place = sum(known > 0 for known, _ in curve)
                self._storage.set_trial_intermediate_value(trial._trial_id, place, value)

    def is_poor(self, number: int) -> bool:
        """Whether the trial's validations so far say that it should be given up."""
        with self._lock:
            return bool(self._study.pruner.prune(self._study, self._frozen(number)))

    def note(self, number: int, name: str, value: Any) -> None:
        """Write something down about a trial under way."""
        with self._lock:
            self._storage.set_trial_user_attr(self._id(number), name, value)

    def end(self, number: int, state: State, figures: Mapping[str, float] | None = None) -> None:
        """End a trial; a complete one with each figure of the objective."""
        with self._lock, _quiet():
            values = None
            if figures is not None:
                values = [figures[name] for name in self.study.config.objective]
            self._study.tell(number, values, state=_OPTUNA[state])

    def importance(self) -> dict[str, float]:
        """Each searched field's share in what makes a trial good (PED-ANOVA, Watanabe et al.,
        2023), largest first; empty while there are too few complete trials to say, or all of them
        are equally good."""
        with self._lock, _quiet():
            found = [tuple(one.figures.values()) for one in self.all() if one.state == "complete"]
            if len(found) < 4 or len(set(found)) < 2:
                return {}
            shares = optuna.importance.get_param_importances(self._study)
        return {name: float(share) for name, share in shares.items()}

    def _id(self, number: int) -> int:
        study_id = self._study._study_id
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _trial(self, frozen: FrozenTrial) -> Trial:
        names = self.study.config.objective
        complete = frozen.state is TrialState.COMPLETE
        return Trial(
            number=frozen.number,
            state=STATES[frozen.state],
            values={
                name: self._dimensions[name].decode(frozen.params[name])
                for name in self._dimensions
                if name in frozen.params
            },
            figures=dict(zip(names, frozen.values, strict=True)) if complete else {},
            curve=[(step, value) for step, value in frozen.user_attrs.get("curve", [])],
            notes={name: one for name, one in frozen.user_attrs.items() if name != "curve"},
        )


def pareto(points: Mapping[int, tuple[float, ...]]) -> set[int]:
    """The keys of the points that no other dominates; smaller is better in every coordinate. Of
    equal points the smallest key stands for all."""
    front = set()
    for key, point in points.items():
        beaten = any(
            (all(a <= b for a, b in zip(other, point, strict=True)))
            and (other != point or name < key)
            for name, other in points.items()
            if name != key
        )
        if not beaten:
            front.add(key)
    return front


def _write_ahead(connection: Any, record: Any) -> None:
    """One flush to disk a checkpoint in place of several a commit: a kill loses nothing, a power
    cut the last words at most."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _sampler(study: Study, index: int) -> optuna.samplers.BaseSampler:
    text = f"{study.config.seed}/{index}"
    seed = random.Random(hashlib.sha256(text.encode()).digest()).getrandbits(32)
    return optuna.samplers.TPESampler(
        n_startup_trials=study.config.random_trials, multivariate=True, seed=seed
    )


def _pruner(study: Study) -> optuna.pruners.BasePruner:
    prune = study.config.prune
    if prune is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.PercentilePruner(
        100 * prune.keep,
        n_startup_trials=prune.warmup_trials,
        n_warmup_steps=prune.warmup_validations,
    )


def _distribution(one: Dimension) -> BaseDistribution:
    space = one.space
    if space.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in space.choices])
    assert space.low is not None
    if one.kind == "int":
        step = 1 if space.step is None else round(space.step)
        return IntDistribution(round(space.low), round(one.top), log=space.log, step=step)
    return FloatDistribution(space.low, one.top, log=space.log, step=space.step)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes about experimental parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
