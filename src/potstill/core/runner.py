"""Runs stages in order, each in a process of its own, and skips what is finished.

In: stages with their configurations, a store, a run folder. Out: finished artifacts, `run.json`,
events. Knows nothing of language models, recipes or how events are shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.core.events import Emitter, follow
from potstill.core.keys import StageKey, changed_parts, stage_key
from potstill.core.mirror import bring, fetch, following
from potstill.core.remote import RemoteStore
from potstill.core.stage import Advice, Artifact, Facts, Figures, Stage, StageConfig
from potstill.core.store import Store
from potstill.errors import AbsentError, PotstillError, UnavailableError, error_from

Watcher = Callable[[dict[str, Any]], None]
Pulse = Callable[[], None]
LARGEST_CORRECTION = 4.0
"""A stage that found its work done, or met pages to recognise, says little about the next run."""


@dataclass(frozen=True)
class Step:
    """One stage with the configuration it is to run with."""

    stage: Stage
    config: StageConfig


@dataclass(frozen=True)
class Elsewhere:
    """A place where stages let others do their work.

    function: "module:name" of `f(stage, function, place) -> function`, imported in the stage's
    process: it gets the stage's name, its own function and `place`, and returns what is run
    instead. That must make the same artifact, for the key does not know of it. place: values of
    JSON.
    """

    function: str
    place: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to a step, and why."""

    name: str
    action: str
    """reuse, run, resume, wait (its inputs are not there yet), or blocked (something that it needs
    cannot be had now, so nobody knows whether it is finished)."""
    reason: str
    estimate: Figures
    """What it is expected to cost; empty if it is reused."""
    key: str | None
    advice: tuple[Advice, ...] = ()
    """What the stage proposes for this machine; nothing if it is reused."""
    problem: PotstillError | None = None
    """What it needs and cannot have now."""


@dataclass(frozen=True)
class Runner:
    """Everything the steps of one run share."""

    store: Store
    project: Path
    seed: int
    threads: int
    pulse: Pulse = lambda: None
    """Called several times a second while a stage runs; what it raises stops the stage, as Ctrl-C
    does, so that a caller in a thread of its own can be stopped too."""
    elsewhere: Elsewhere | None = None
    remote: RemoteStore | None = None
    """Where finished results are looked for before a stage runs, and brought afterwards."""
    anew: frozenset[str] = frozenset()
    """Stages that are made here though the remote store may have them."""

    def key(self, step: Step, done: Mapping[str, Artifact], facts: Facts | None = None) -> StageKey:
        """The step's key, given its finished inputs. facts: if they were gathered already."""
        if facts is None:
            facts = step.stage.facts(step.config, self.project)
        inputs = {name: done[name].digest for name in step.stage.inputs}
        return stage_key(step.stage, step.config, inputs, facts, self.seed)

    def plan(self, steps: Sequence[Step]) -> list[PlannedStep]:
        """What `run` would do now. Starts nothing and writes nothing."""
        return self._survey(steps)[0]

    def figures(self, steps: Sequence[Step]) -> dict[str, Figures]:
        """Of each stage by name, what later ones have to work on and what it costs: its estimate,
        with the counts of a finished one instead of guesses."""
        planned, figures = self._survey(steps)
        for step, one in zip(steps, planned, strict=True):
            if one.action == "reuse":
                name = step.stage.name
                figures[name] = {**self._expected(step, figures), **figures[name]}
        return figures

    def _survey(self, steps: Sequence[Step]) -> tuple[list[PlannedStep], dict[str, Figures]]:
        done: dict[str, Artifact] = {}
        figures: dict[str, Figures] = {}
        planned = []
        for step in steps:
            name = step.stage.name
            missing = [one for one in step.stage.inputs if one not in done]
            facts, problem = self._facts(step)
            key = None if missing or problem else self.key(step, done, facts)
            artifact = self.store.find(name, key.value) if key else None
            if key and artifact is not None:
                done[name] = artifact
                figures[name] = self._counts(artifact)
                planned.append(PlannedStep(name, "reuse", "nothing changed", {}, key.value))
                continue
            there = self.remote.find(self.store, name, key.value) if self.remote and key else None
            if key and self.remote and there is not None:
                done[name], manifest = there
                figures[name] = manifest.get("counts", {})
                reason = f"is in {self.remote.address}"
                planned.append(PlannedStep(name, "reuse", reason, {}, key.value))
                continue
            figures[name] = self._expected(step, figures)
            expected = self._corrected(name, figures[name])
            advice = self._advice(step, figures)
            if key is None:
                if missing:  # inputs are in the order of the flow: the last one comes last
                    action, reason = "wait", f"after {missing[-1]}"
                else:
                    assert problem is not None
                    action, reason = "blocked", problem.message
                planned.append(PlannedStep(name, action, reason, expected, None, advice, problem))
                continue
            action = "resume" if self.store.has_draft(name, key.value) else "run"
            reason = self._reason(name, key, action)
            planned.append(PlannedStep(name, action, reason, expected, key.value, advice))
        return planned, figures

    def _facts(self, step: Step) -> tuple[Facts, PotstillError | None]:
        """The step's facts, or what it needs and cannot have now. What is wrong, as a model that
        nobody knows, is raised."""
        try:
            return step.stage.facts(step.config, self.project), None
        except (UnavailableError, AbsentError) as error:
            return {}, error

    def _counts(self, artifact: Artifact) -> Figures:
        """What a finished stage left for the later ones, as its manifest says."""
        manifest = self.store.manifest(artifact.stage, artifact.key)
        return manifest.get("counts", {}) if manifest else {}

    def _expected(self, step: Step, figures: Mapping[str, Figures]) -> Figures:
        """The stage's estimate; none if it fails, for no guess is worth a run."""
        try:
            return step.stage.estimate(step.config, figures, self.project)
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError):
            return {}

    def _advice(self, step: Step, figures: Mapping[str, Figures]) -> tuple[Advice, ...]:
        """The stage's proposals; none if its figures do not suffice, as with its estimate."""
        try:
            return step.stage.advise(step.config, figures, self.project)
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError):
            return ()

    def _corrected(self, name: str, expected: Figures) -> Figures:
        """The estimate with its time as this machine needs it: by as much as the stage's last
        undisturbed run took more or less than had been expected of it, within reason."""
        last = self.store.newest_manifest(name, undisturbed=True)
        foreseen = last.get("expected", {}).get("seconds") if last else None
        if last is None or not foreseen or "seconds" not in expected:
            return expected
        factor = min(LARGEST_CORRECTION, max(1 / LARGEST_CORRECTION, last["seconds"] / foreseen))
        return {**expected, "seconds": expected["seconds"] * factor}

    def _reason(self, name: str, key: StageKey, action: str) -> str:
        if action == "resume":
            return "was interrupted; goes on from where it was, for less than this"
        last = self.store.newest_manifest(name)
        if last is None:
            return "never run here"
        changed = [
            name.removeprefix("config.").removeprefix("reads.")
            for name in changed_parts(last["parts"], key.parts)
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"changed: {', '.join(changed[:3])}{more}"

    def run(
        self,
        steps: Sequence[Step],
        events: Path,
        logs: Path,
        watch: Watcher,
        finished: Callable[[Artifact, bool], None],
    ) -> dict[str, Artifact]:
        """Run or reuse each step in order.

        `watch` sees every event; `finished(artifact, reused)` is called after each step.
        Errors: those of any step's facts, before the first one runs; the stage's own
        PotstillError, as its process reported it.
        """
        for step in steps:
            step.stage.facts(step.config, self.project)  # before an earlier stage spends hours
        done: dict[str, Artifact] = {}
        figures: dict[str, Figures] = {}
        waiting: list[Artifact] = []
        for step in steps:
            name = step.stage.name
            key = self.key(step, done)
            artifact = self.store.find(name, key.value)
            reused, reason = artifact is not None, "nothing changed"
            there = None if name in self.anew else self.remote
            if artifact is None and fetch(there, self.store, name, key.value, watch):
                artifact = self.store.find(name, key.value)
                reused, reason = True, f"was in {self.remote.address if self.remote else ''}"
            if artifact is None:
                expected = self._expected(step, figures)
                with following(self.remote, self.store, name, key.value, events):
                    self._spawn(step, key, done, expected, events, logs / f"{name}.log", watch)
                artifact = self.store.find(name, key.value)
                if artifact is None:
                    raise PotstillError(f"The stage {name} ended without a result.")
            else:
                self.store.tidy(artifact)
                Emitter(events, name).emit("skipped", key=key.value, reason=reason)
                watch({"stage": name, "kind": "skipped", "key": key.value, "reason": reason})
            done[name] = artifact
            figures[name] = self._counts(artifact)
            finished(artifact, reused)
            if not bring(self.remote, self.store, artifact, watch):
                waiting.append(artifact)
        for artifact in waiting:  # whose upload failed: once more, and now it counts
            bring(self.remote, self.store, artifact, watch, again=True)
        return done

    def _spawn(
        self,
        step: Step,
        key: StageKey,
        done: Mapping[str, Artifact],
        expected: Figures,
        events: Path,
        log: Path,
        watch: Watcher,
    ) -> None:
        name = step.stage.name
        job = {
            "stage": name,
            "eases_memory": step.stage.eases_memory,
            "module": step.stage.function.split(":")[0].rpartition(".")[0],
            "config": step.config.model_dump(mode="json"),
            "inputs": {one: done[one].key for one in step.stage.inputs},
            "key": key.value,
            "parts": dict(key.parts),
            "expected": dict(expected),
            "store": str(self.store.root),
            "project": str(self.project),
            "seed": self.seed,
            "threads": self.threads,
            "events": str(events),
            "log": str(log),
            "elsewhere": asdict(self.elsewhere) if self.elsewhere else None,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        start = events.stat().st_size if events.exists() else 0
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "potstill.core.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(self.threads),
            )
        assert process.stdin is not None
        said: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(process.stdout, said), daemon=True)
        failure = None

        def alive() -> bool:
            self.pulse()
            return process.poll() is None

        # Not `with process`: at Ctrl-C that would close the stream that the reader waits at, and
        # wait for the reader.
        try:
            reader.start()
            with contextlib.suppress(BrokenPipeError):  # it may have ended before it was told
                process.stdin.write((json.dumps(job) + "\n").encode())
                process.stdin.flush()
            for event in follow(events, start, alive):
                if event["stage"] == name:
                    watch(event)
                    failure = event if event["kind"] == "failed" else failure
        except BaseException:
            process.terminate()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
            if reader.is_alive():
                reader.join(timeout=5)
        if code != 0:
            raise _error(failure or _last_json(b"".join(said)), step.stage, code, log)


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: bounded threads, and no output that waits in a buffer."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _drain(stream: Any, said: list[bytes]) -> None:
    """Read to the end, and close: only who reads a stream may close it."""
    with stream:
        said.extend(iter(lambda: stream.read1(65536), b""))


def _last_json(output: bytes) -> dict[str, Any] | None:
    for line in reversed(output.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "error" in value:
            return value
    return None


def _error(failure: dict[str, Any] | None, stage: Stage, code: int, log: Path) -> PotstillError:
    if failure is not None:
        return error_from(failure)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    hint = f"Its log is {log}; run the same command again to go on."
    if code == -9:
        hint = f"The system may have run out of memory. {stage.eases_memory} {hint}"
    return PotstillError(f"The process of the stage {stage.name} {how}.", hint)
