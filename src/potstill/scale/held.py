"""A Ray of this machine that stays for a whole run, in a process that ends with the run's.

In: a `Place`. Out: the same place, with a file that says where its Ray answers. It begins beside
whatever the run does first; a stage that needs it waits for the file and joins. Begun and ended
with each stage, Ray cost four seconds of each. Importing this module imports no Ray.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.core.files import read_json, write_atomic
from potstill.core.machine import usable_cores
from potstill.errors import UnavailableError
from potstill.scale.place import Place

OBJECT_STORE_BYTES = 256 * 2**20  # workers of this machine open files themselves
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
WAIT_SECONDS = 60.0
END_SECONDS = 20.0


@contextmanager
def held(place: Place) -> Iterator[Place]:
    """Hold a Ray for a place on this machine; of a cluster, nothing is begun or ended."""
    if not place.local:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="potstill-held-") as folder:
        told = Path(folder) / "ray.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "potstill.scale.held", str(told), str(cores(place))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        try:
            yield replace(place, held=str(told))
        finally:
            process.stdin.close()  # at its end the process ends Ray, and itself
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cores(place: Place) -> int:
    """What its workers may reserve together."""
    return max((place.workers or 0) * place.threads, usable_cores(), place.threads)


def address_in(told: Path) -> str:
    """Where the Ray that is held answers, when it does; its token is in the environment then, which
    Ray reads when it is imported.

    Errors: UnavailableError with what it says, or if it says nothing for long.
    """
    until = time.monotonic() + WAIT_SECONDS
    while not told.is_file() and time.monotonic() < until:
        time.sleep(0.02)
    silent = {"error": f"it said nothing within {WAIT_SECONDS:g} seconds"}
    said: dict[str, str] = read_json(told) if told.is_file() else silent
    if "error" in said:
        raise UnavailableError(
            f"Ray did not begin on this machine: {said['error']}.",
            "It may lack memory or room in the folder for temporary files. Run without --on, or on "
            "a cluster that runs: --on ray://HOST:PORT",
        )
    os.environ |= token_variables(said["token"])
    return said["address"]


def gpu_each(ray: Any, workers: int) -> int:
    """1 if each of so many workers can have a GPU of the connected Ray, else 0."""
    return int(ray.cluster_resources().get("GPU", 0) >= workers)


def last_line(error: BaseException) -> str:
    """What Ray says of a failure, without the layers that it went through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


def token_variables(token: str) -> dict[str, str]:
    """What both sides have in their environment."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def main() -> None:
    """Begin Ray, say where, and end it when standard input ends: with who began this."""
    told, count = Path(sys.argv[1]), int(sys.argv[2])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    token = secrets.token_hex(32)  # whoever cannot read the file cannot join
    os.environ |= token_variables(token)
    import ray

    try:
        context = begin(ray, count)
        said = {"address": context.address_info["gcs_address"], "token": token}
    except Exception as error:  # Ray raises what its transport raises
        said = {"error": last_line(error)}
    with suppress(OSError):  # who waited for it may be gone
        write_atomic(told, json.dumps(said))
    sys.stdin.read()
    ray.shutdown()


def begin(ray: Any, count: int, store_bytes: int = OBJECT_STORE_BYTES) -> Any:
    """A Ray of this machine, for so many cores, that listens here only; Ray's context. It ends with
    this process, or with `ray.shutdown`."""
    _stay_here()
    return ray.init(
        "local",
        num_cpus=count,
        include_dashboard=False,
        object_store_memory=store_bytes,
        **QUIET,
    )


def join(ray: Any, address: str) -> None:
    """Connect to the Ray that is held there."""
    _stay_here()
    ray.init(address, **QUIET)


def _stay_here() -> None:
    """Ray's servers listen on all interfaces, whatever address its node is given, but on macOS and
    Windows: there it takes the loopback's, and with that one listens nowhere else."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


if __name__ == "__main__":
    main()
