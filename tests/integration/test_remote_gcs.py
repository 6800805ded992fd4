"""The same over Google's storage API: an emulator on loopback, asked through gcsfs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import gcsfs
import pytest
from gcp_storage_emulator.server import create_server
from remote_round_trip import finished, there_and_back

from potstill.core.remote import RemoteStore
from potstill.core.store import Store
from potstill.errors import StoreError

pytestmark = [
    pytest.mark.whole,
    # gcsfs, aiohttp and the emulator warn of each other's ways; none of it is ours.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = create_server("127.0.0.1", port, in_memory=True, default_bucket="distilled")
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield "gs://distilled/team/project"
    gcsfs.GCSFileSystem.clear_instance_cache()
    running.stop()


def test_results_go_to_a_bucket_of_google_and_come_back(gs: str, tmp_path: Path) -> None:
    there_and_back(gs, tmp_path)


def test_a_bucket_of_google_that_is_not_there_is_one_line(gs: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    with pytest.raises(StoreError, match="there is no such bucket") as raised:
        RemoteStore("gs://no-such-bucket/x").bring(store, finished(store))
    assert "no-such-bucket" in raised.value.message
