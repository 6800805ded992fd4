"""Where the stages of a run do their work, in words.

In: what a user writes after `--on`. Out: a `Place` that crosses to the stage's process as plain
values, or one clear error before anything has run. Imports no Ray: whether it is installed is asked
of the system, whether an address answers is asked of the address.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from potstill.core.extras import check_installed
from potstill.core.runner import Elsewhere
from potstill.errors import UnavailableError, UsageError

LOCAL = "ray"
PORT = 10001  # of Ray's client server, where an address names none
CONNECT_SECONDS = 5.0
FUNCTION = "potstill.scale.stages:on_ray"


@dataclass(frozen=True)
class Place:
    """A Ray cluster, and what may be assumed of it.

    address: `ray` for one on this machine's cores, begun and ended with the run, or
    `ray://host:port`. shared: the project folder has the same path on every worker. workers: the
    most at once; None: as many as there are cores for. threads: of each worker. held: the file that
    says where a Ray of this machine answers that stays for the run (`held.py`).
    """

    address: str
    shared: bool = False
    workers: int | None = None
    threads: int = 1
    held: str | None = None

    @property
    def local(self) -> bool:
        """Whether its workers are processes of this machine."""
        return self.address == LOCAL

    @property
    def sees_files(self) -> bool:
        """Whether a worker can open a file of the project by its path."""
        return self.local or self.shared

    def as_elsewhere(self) -> Elsewhere:
        """How a runner passes it on."""
        return Elsewhere(FUNCTION, asdict(self))


def place_of(
    on: str, *, shared: bool = False, workers: int | None = None, threads: int | None = None
) -> Place:
    """The place that `--on` names. Errors: UsageError, MissingExtraError; UnavailableError if
    nothing listens at the address."""
    address = on.strip()
    if address != LOCAL:
        parts = urlsplit(address)
        try:
            port = parts.port or PORT
        except ValueError as error:
            raise _unknown(on) from error
        if parts.scheme != "ray" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise _unknown(on)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        address = f"ray://{host}:{port}"
    check_installed("ray", f"Running on {on}", "ray")
    if address != LOCAL:
        _check_listens(parts.hostname or "", port, address)
    return Place(address, shared, workers, threads or 1)


def place_from(values: Mapping[str, Any]) -> Place:
    """The place again, in another process."""
    return Place(**values)


def _unknown(on: str) -> UsageError:
    return UsageError(
        f"There is no place {on!r} to run on.",
        "Write ray for this machine's cores, or ray://HOST:PORT for a cluster.",
    )


def _check_listens(host: str, port: int, address: str) -> None:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UnavailableError(
            f"No Ray cluster answers at {address}: {error.strerror or error}.",
            "Start one with: ray start --head --ray-client-server-port 10001, or run on this "
            "machine with: --on ray",
        ) from error
