"""Which version of a run's student is served, which candidates there are, and how it came to that.

In: names of runs, verdicts of the gate, decisions. Out: versions.json in the run's serve folder,
written whole under a lock, so that a service that looks at it sees the old state or the new. Knows
no model: a version is the name of a run of the same project, whose exported file is served.

    {"serving": [{"version", "file", "since", "by", "forced", "unproven"}, ...],
     "candidates": {"name": {"made", "from", "export", "gate": {...}}},
     "history": [{"time", "action", "from", "to", "by", "reason"}, ...]}

The last of `serving` serves; rollback takes it off.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from potstill.core.files import disk_errors, read_json, write_json
from potstill.errors import StoreError, UsageError
from potstill.serve.feedback import now

FILE = "versions.json"


@dataclass(frozen=True)
class Serving:
    """What serves: a run's name, and which of its exported files; "": the run's default."""

    version: str
    file: str = ""


class Versions:
    """The versions of one run. name: the run's; folder: what its service keeps.

    Errors, of every method: StoreError for a damaged file or a disk that refuses.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / FILE, name

    def read(self) -> dict[str, Any]:
        """The whole file; of a run that was never improved the run itself serves."""
        first = {"version": self.name, "file": "", "since": "", "by": ""}
        if not self.path.exists():
            return {"serving": [first], "candidates": {}, "history": []}
        with disk_errors(self.path, "read"):
            found = read_json(self.path)
        if not isinstance(found, dict) or not found.get("serving"):
            raise StoreError(f"{self.path} is damaged.", "Restore it, or move it away.")
        return found

    def current(self) -> Serving:
        """What serves now."""
        last = self.read()["serving"][-1]
        return Serving(str(last["version"]), str(last.get("file", "")))

    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever the file does."""
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def add_candidate(
        self, name: str, *, origin: str, export: str, gate: Mapping[str, Any]
    ) -> None:
        """Note what the gate says of a candidate. origin: the version that it was compared with
        and began from. export: key of its exported result."""
        with self._changing() as state:
            state["candidates"][name] = {
                "made": now(), "from": origin, "export": export, "gate": dict(gate),
            }  # fmt: skip

    def promote(
        self,
        name: str,
        file: str,
        export: str,
        *,
        force: bool = False,
        accept_unproven: bool = False,
        by: str | None = None,
    ) -> Serving:
        """Let a candidate serve. file, export: its exported file, and the key of that result.

        force: without a passed gate; it is recorded, with what the gate said. Errors: UsageError
        says why it may not be promoted.
        """
        with self._changing() as state:
            before = state["serving"][-1]["version"]
            if name == before:
                raise UsageError(f"{name} serves {self.name} already.")
            candidate = state["candidates"].get(name)
            refusal = _refusal(name, candidate, before, export, accept_unproven)
            if refusal is not None and not force:
                raise refusal
            who = by or getpass.getuser()
            gate = candidate["gate"] if candidate else {"state": "none", "reasons": []}
            state["serving"].append(
                {
                    "version": name,
                    "file": file,
                    "since": now(),
                    "by": who,
                    "forced": refusal is not None,
                    "unproven": gate["state"] == "unproven",
                }
            )
            reason = f"forced: {refusal.message}" if refusal else "; ".join(gate["reasons"])
            _note(state, "promote", before, name, who, reason)
        return Serving(name, file)

    def rollback(self, by: str | None = None) -> Serving:
        """Let the version before serve again. Errors: UsageError if there is none."""
        with self._changing() as state:
            if len(state["serving"]) < 2:
                raise UsageError(
                    f"{self.name} serves its first version: there is none before it.",
                    f"See them with: potstill versions {self.name}",
                )
            left, back = state["serving"].pop(), state["serving"][-1]
            who = by or getpass.getuser()
            _note(state, "rollback", left["version"], back["version"], who, "")
        return Serving(str(back["version"]), str(back.get("file", "")))

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with disk_errors(self.path.parent, "create"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{FILE}.lock")):
            state = self.read()
            yield state
            write_json(self.path, state)


def _refusal(
    name: str,
    candidate: Mapping[str, Any] | None,
    current: str,
    export: str,
    accept_unproven: bool,
) -> UsageError | None:
    """Why a candidate may not be promoted; None: it may."""
    if candidate is None:
        return UsageError(
            f"{name} has passed no gate: it is no candidate.", "Make one with: potstill improve RUN"
        )
    gate = candidate["gate"]
    forced = "See the figures with: potstill versions RUN; --force promotes it all the same."
    if candidate["export"] != export:
        return UsageError(
            f"{name} was run again since its gate.", "Let it be judged: potstill improve RUN"
        )
    if candidate["from"] != current:
        return UsageError(
            f"{name} was compared with {candidate['from']}, but {current} serves now.",
            "Improve that one: potstill improve RUN; --force promotes it all the same.",
        )
    if gate["state"] == "unproven" and not accept_unproven:
        return UsageError(
            f"{name} is not proven better: {'; '.join(gate['reasons'])}.",
            "Collect more feedback, or take it as it is: --accept-unproven",
        )
    if gate["state"] == "failed":
        return UsageError(f"{name} has not passed the gate: {'; '.join(gate['reasons'])}.", forced)
    return None


def _note(
    state: dict[str, Any], action: str, before: str, after: str, who: str, reason: str
) -> None:
    state["history"].append(
        {"time": now(), "action": action, "from": before, "to": after, "by": who, "reason": reason}
    )
