"""What a stage is: its name, its configuration, what it reads, and one function that runs it.

In: `Stage` descriptions from the stage packages. Out: the contract that `runner.py` keeps.
Knows nothing of any particular stage.

A stage package exposes one light `STAGE` (no heavy import); the function that does the work is
named as text and imported only in the process that runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from potstill.core.events import Emitter


class StageConfig(BaseModel):
    """Base of every stage's configuration: unknown keys are refused, values do not change.

    `not_in_key` names the fields that cannot change the stage's output (threads, logging);
    every other field is part of the stage's key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    not_in_key: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Artifact:
    """A finished stage's output: a folder that nobody changes any more."""

    stage: str
    key: str
    folder: Path
    digest: str

    @property
    def as_dict(self) -> dict[str, str]:
        """Plain values, for another process that sees the folder; `from_dict` reads them."""
        return {**vars(self), "folder": str(self.folder)}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Artifact:
        """The inverse of `as_dict`."""
        return cls(values["stage"], values["key"], Path(values["folder"]), values["digest"])

    def path(self, name: str) -> Path:
        """Path of a file in the artifact's data."""
        return self.folder / "data" / name


@dataclass(frozen=True)
class Draft:
    """The only place a running stage may write.

    `data` becomes the artifact. `work` survives a kill (checkpoints, partial files) and is
    dropped when the stage is done.
    """

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def work(self) -> Path:
        return self.folder / "work"


@dataclass(frozen=True)
class Context:
    """What a stage may know of the run around it."""

    project: Path
    """Folder that relative paths of the recipe start from; inputs must stay below it."""
    cache: Path
    """Results that outlive a run and are safe to share: finished teacher requests."""
    seed: int
    threads: int
    events: Emitter


StageFunction = Callable[[Any, Mapping[str, Artifact], Draft, Context], None]
"""What does the work of a stage: `run(config, inputs, draft, context)`."""
Facts = Mapping[str, str]
"""Digests of what a stage reads besides earlier stages: source files, models, engines."""
Figures = Mapping[str, float]
"""Quantities by name. Of costs: requests, tokens, seconds, memory_bytes, disk_bytes, money. Of
what later stages have to work on: files, chunks, chunk_tokens, rows, train_rows, validation_rows,
test_rows, parameters."""


@dataclass(frozen=True)
class Advice:
    """What a stage proposes for one field on this machine."""

    field: str
    """As `--set` takes it: section and name."""
    proposed: str
    """The value, as `--set` takes it."""
    same: bool
    """Whether the recipe has it already."""
    why: str


def _no_facts(config: Any, project: Path) -> Facts:
    return {}


def _no_estimate(config: Any, earlier: Mapping[str, Figures], project: Path) -> Figures:
    return {}


def _no_advice(config: Any, earlier: Mapping[str, Figures], project: Path) -> tuple[Advice, ...]:
    return ()


def _no_counts(data: Path) -> Figures:
    return {}


@dataclass(frozen=True)
class Stage:
    """The description of a stage.

    `function` is "module:name" of `run(config, inputs, draft, context) -> None`.
    `facts(config, project)` is light: no torch, no network beyond resolving a name.
    `estimate(config, earlier, project)` says what a run will cost on this machine, from the
    figures of the earlier stages: the counts of finished ones, the estimates of the others.
    `advise(config, earlier, project)`, from the same figures, says what would suit this machine.
    `counts(data)` are figures of what the stage left in its data folder; taken once, when it is
    finished, and kept in the manifest.
    `eases_memory` is what to say if the system kills it for want of memory.
    `version` is bumped by hand when the code's meaning changes.
    """

    name: str
    version: int
    config: type[StageConfig]
    inputs: tuple[str, ...]
    function: str
    facts: Callable[[Any, Path], Facts] = _no_facts
    estimate: Callable[[Any, Mapping[str, Figures], Path], Figures] = _no_estimate
    advise: Callable[[Any, Mapping[str, Figures], Path], tuple[Advice, ...]] = _no_advice
    counts: Callable[[Path], Figures] = _no_counts
    eases_memory: str = "Close other programs, or use a machine with more memory."

    def load(self) -> StageFunction:
        """Import the function that runs the stage (this is where torch may come in)."""
        module, name = self.function.split(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function
