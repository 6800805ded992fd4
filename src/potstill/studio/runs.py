"""The runs of a project as pages list them: found by their folders, with state and last figures.

In: the project folder. Out: `RunView`s. Reads only. Knows no page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.claims import holder
from potstill.core.files import read_json
from potstill.errors import StoreError, UsageError
from potstill.pipeline import PIPELINE, Run
from potstill.studio.diary import Diary
from potstill.studio.launch import LOG, last_words
from potstill.studio.session import Studio

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
STATES = {
    "starting": "starting",
    "running": "running",
    "stopping": "stopping",
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped",
    "new": "not started",
}
LIVE = frozenset({"starting", "running", "stopping"})


@dataclass(frozen=True)
class RunView:
    """A run as it stands. failure: message and way out of a failed one."""

    name: str
    folder: Path
    state: str
    diary: Diary
    failure: tuple[str, str] | None

    @property
    def words(self) -> str:
        """Its state, for people."""
        return STATES[self.state]

    @property
    def live(self) -> bool:
        """Whether a process works on it."""
        return self.state in LIVE

    @property
    def run(self) -> Run:
        """For the functions of the pipeline."""
        return Run(self.folder)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of its record; empty while there is none, or a damaged one."""
        try:
            found = self.run.record["recipe"]
        except (StoreError, OSError, LookupError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def again(self) -> list[str]:
        """The stages whose results it has, which can be run once more."""
        try:
            stages = self.run.record["stages"]
            return [one.name for one in PIPELINE if one.name in stages]
        except (StoreError, OSError, LookupError, TypeError):
            return []

    @property
    def report(self) -> dict[str, Any] | None:
        """report.json, if there is a whole one."""
        try:
            found = read_json(self.folder / "report.json")
        except (StoreError, OSError):
            return None
        return found if isinstance(found, dict) and "models" in found else None

    @property
    def marks_spans(self) -> bool:
        """Whether its student marks answers instead of writing them."""
        return self.recipe.get("task") == "spans"


def find_run(studio: Studio, name: str) -> RunView:
    """The run of that name. Errors: UsageError if there is none."""
    folder = studio.project / "runs" / name
    if not NAME.fullmatch(name) or not is_run(folder):
        raise UsageError(
            f"There is no run {name[:64]}.",
            "Its folder may have been moved or deleted. Its finished stages are still in the store "
            "and are reused when the recipe runs again.",
        )
    return _view(studio, folder)


def all_runs(studio: Studio) -> list[RunView]:
    """Every run of the project, the last one first."""
    folder = studio.project / "runs"
    try:
        found = [one for one in folder.iterdir() if NAME.fullmatch(one.name) and is_run(one)]
    except OSError:
        found = []
    views = [_view(studio, one) for one in found]
    return sorted(views, key=lambda one: (-_touched(one), one.name))


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run, by the files in it."""
    return (folder / "run.json").is_file() or (folder / "recipe.yaml").is_file()


def _touched(view: RunView) -> float:
    try:
        return view.diary.last or view.folder.stat().st_mtime
    except OSError:
        return 0.0


def _view(studio: Studio, folder: Path) -> RunView:
    live = studio.launcher.running(folder)  # before the diary: a run that ends in between has ended
    diary = studio.diary(folder)
    refused = None if live else _refused(folder, diary)
    if live:
        # Before it holds its folder, the diary is still that of the process before.
        held = holder(folder) is not None
        state = "running" if held and diary.state == "running" else "starting"
        state = "stopping" if studio.launcher.stopping(folder) else state
    elif refused:
        state = "failed"
    else:
        state = {"": "new", "running": "stopped"}.get(diary.state, diary.state)
    failure = refused or (diary.failure if state == "failed" else None)
    return RunView(folder.name, folder, state, diary, failure)


def _refused(folder: Path, diary: Diary) -> tuple[str, str] | None:
    """Why the last process that the studio started did not get as far as the diary, or what it said
    at its end, which has the way out too."""
    said = last_words(folder)
    if said is None:
        return None
    if diary.state in ("failed", "running") and diary.failure and diary.failure[0] == said[0]:
        return said
    try:
        later = (folder / LOG).stat().st_mtime >= diary.last
    except OSError:
        return None
    return said if later else None
