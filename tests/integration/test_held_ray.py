"""The Ray that a run holds: stages join it, nobody else can, and it ends with the run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.core.files import read_json
from potstill.errors import UnavailableError
from potstill.scale.cluster import connected
from potstill.scale.held import address_in, held
from potstill.scale.place import Place

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(),
    reason="a Linux machine runs it, as CI is: processes and sockets are found as it shows them",
)
pytest.importorskip("ray", reason="an environment with the extra ray runs it, as CI's is")
LISTENING = "0A"

HOLDER = """
import sys, time
from potstill.scale.held import held
from potstill.scale.place import Place
with held(Place("ray")) as place:
    print(place.held, flush=True)
    time.sleep(300)
"""
JOINED = """
import sys
from potstill.scale.cluster import connected
from potstill.scale.place import Place
with connected(Place("ray", workers=2, held=sys.argv[1])) as cluster:
    cluster.ray.get(cluster.ledger.put.remote(1, "one"))
    print(cluster.workers, cluster.take())
"""


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_stages_join_it_it_listens_here_only_and_ends_with_whoever_began_it() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        told = Path(holder.stdout.readline().strip())
        for _ in range(2):
            joined = subprocess.run(
                [sys.executable, "-c", JOINED, str(told)], capture_output=True, text=True
            )
            assert joined.stdout == "2 ([(1, 'one')], [])\n", joined.stderr
        address, token = read_json(told)["address"], read_json(told)["token"]
        began = set(_descendants(holder.pid))
        names = {Path(_command(one).split()[0]).name for one in began}
        assert {"gcs_server", "raylet"} <= names
        assert address.startswith("127.0.0.1:")
        assert all(_is_loopback(one) for one in _listening(began))
        assert all(token not in _command(one) for one in began)
        assert told.parent.stat().st_mode & 0o077 == 0  # the token is its owner's alone
    finally:
        holder.send_signal(signal.SIGKILL)  # as the kernel does where memory is short
        holder.communicate()
    until = time.monotonic() + 60
    while left := [one for one in began if _command(one)]:
        assert time.monotonic() < until, [_command(one) for one in left]
        time.sleep(0.2)


def test_a_ray_that_does_not_begin_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "ray.json"
    with monkeypatch.context() as patch:
        patch.setattr("potstill.scale.held.WAIT_SECONDS", 0.1)
        with pytest.raises(UnavailableError, match="said nothing within"):
            address_in(told)
    told.write_text('{"error": "No room"}')
    with pytest.raises(UnavailableError, match=r"machine: No room\. .*--on ray://"):
        address_in(told)
    with pytest.raises(UnavailableError), connected(Place("ray", held=str(told))):
        pass


def test_nothing_is_held_of_a_cluster() -> None:
    place = Place("ray://head:10001")
    with held(place) as same:
        assert same is place


def _descendants(pid: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(entry.parent.name)
            yield child
            yield from _descendants(child)


def _command(pid: int) -> str:
    """Empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _listening(pids: set[int]) -> list[str]:
    """Addresses, as the kernel writes them, at which these processes listen."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(file.readlink()).removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    assert found
    return found


def _is_loopback(address: str) -> bool:
    """127.0.0.1, also as an address of IPv6, or ::1; words are in this machine's order of bytes."""
    return address.endswith("0100007F") or address == f"{'0' * 24}01000000"
