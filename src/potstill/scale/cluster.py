"""A connection to Ray: begun before a stage, ended after it, with every failure in one line.

In: a `Place`. Out: a `Cluster`: how many workers fit, and the ledger into which they write what is
done. Knows nothing of files or requests.

The **ledger** is one actor without processor. A worker writes each finished thing into it at once;
a worker that takes over after a dead one asks it first. So a worker that is killed loses what it
was doing, and nothing that it had done. What the ledger holds is handed to the stage's process as
soon as that asks, and forgotten.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from potstill import __version__
from potstill.core.extras import require
from potstill.errors import PotstillError, UnavailableError
from potstill.scale.held import QUIET, address_in, begin, cores, gpu_each, join, last_line
from potstill.scale.place import Place

PROBE_SECONDS = 120.0
CONNECTIONS = 3


class Ledger:
    """What workers have done and nobody has fetched yet. An actor of Ray.

    Things have numbers, and a number is given once.
    """

    def __init__(self) -> None:
        self._new: list[tuple[int, Any]] = []
        self._known: set[int] = set()
        self._begun = 0
        self._notes: list[str] = []

    def put(self, number: int, value: Any) -> None:
        """A thing is done. A second time it is not taken."""
        if number not in self._known:
            self._known.add(number)
            self._new.append((number, value))

    def begin(self) -> None:
        """Somebody has begun with a thing, perhaps after another who died."""
        self._begun += 1

    def repeated(self) -> int:
        """How often a thing was begun again, when all are done."""
        return self._begun - len(self._known)

    def known(self, numbers: Sequence[int]) -> list[int]:
        """Which of these things are done."""
        return [number for number in numbers if number in self._known]

    def note(self, text: str) -> None:
        """What a user should know though work goes on."""
        self._notes.append(text)

    def take(self) -> tuple[list[tuple[int, Any]], list[str]]:
        """What is new since the last time."""
        taken = self._new, self._notes
        self._new, self._notes = [], []
        return taken


@dataclass
class Cluster:
    """A connected Ray. `ray`: the module. `workers`: how many are used at once."""

    ray: Any
    place: Place
    workers: int
    ledger: Any

    @property
    def gpu_each(self) -> int:
        """1 if every worker can have a GPU, else 0."""
        return gpu_each(self.ray, self.workers)

    def take(self) -> tuple[list[tuple[int, Any]], list[str]]:
        """What workers have done since the last time, and what they say to the user."""
        found: tuple[list[tuple[int, Any]], list[str]] = self.ray.get(self.ledger.take.remote())
        return found


@contextmanager
def connected(place: Place) -> Iterator[Cluster]:
    """A cluster, given back at the end; a local one that no run holds ends with the block.

    Errors: MissingExtraError, UnavailableError if it cannot be reached or used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    address = place.held and address_in(Path(place.held))
    ray = require("ray", "ray", "Running on Ray")
    _begin(ray, place, address)
    try:
        if not place.local:
            _check_workers(ray, place)
        ledger = ray.remote(Ledger).options(num_cpus=0, name=f"potstill-ledger-{uuid4()}").remote()
        yield Cluster(ray, place, _workers(ray, place), ledger)
    finally:
        ray.shutdown()


def _begin(ray: Any, place: Place, address: str | None) -> None:
    try:
        if address:
            join(ray, address)
        elif place.local:
            begin(ray, cores(place))
        else:
            _connect(ray, place)
    except Exception as error:  # Ray raises what its transport raises
        raise UnavailableError(
            f"No work can be done on {place.address}: {last_line(error)}.",
            "Both sides need the same versions of Ray and Python and, if the cluster asks for "
            "one, the same token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH).",
        ) from error


def _connect(ray: Any, place: Place) -> None:
    """The client's server sometimes fails to begin, and does so when it is asked again."""
    for left in reversed(range(CONNECTIONS)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of what it raises
                ray.init(place.address, **QUIET)
            return
        except Exception as error:
            ray.shutdown()
            if not left or "Starting Ray client server failed" not in str(error):
                raise


def _workers(ray: Any, place: Place) -> int:
    """As many workers as were asked for; else as many as there are cores for now."""
    count = int(ray.cluster_resources().get("CPU", 1))
    return place.workers or max(1, count // place.threads)


def _check_workers(ray: Any, place: Place) -> None:
    """Errors: UnavailableError if a worker has no Potstill, or another one."""
    hint = f"Install potstill {__version__} on every node, for example by the cluster's image."

    def version() -> str:  # sent by value: a worker without Potstill can run it
        import importlib.metadata

        try:
            import potstill
        except ImportError:
            return ""
        return getattr(potstill, "__version__", "") or importlib.metadata.version("potstill")

    try:
        probe = ray.remote(version).options(num_cpus=place.threads)
        found = ray.get(probe.remote(), timeout=PROBE_SECONDS)
    except Exception as error:
        raise UnavailableError(
            f"No worker of {place.address} could be used: {last_line(error)}.", hint
        ) from error
    if found != __version__:
        has = f"potstill {found}" if found else "no potstill"
        raise UnavailableError(
            f"The workers of {place.address} have {has}, and here is {__version__}.", hint
        )


def gone(place: Place, error: BaseException) -> PotstillError:
    """What to say when workers die again and again, or the cluster is gone."""
    return PotstillError(
        f"The workers of {place.address} do not stay: {last_line(error)}.",
        "They may lack memory: use fewer (--workers) or larger ones. What is finished is kept; "
        "the same command goes on.",
    )
