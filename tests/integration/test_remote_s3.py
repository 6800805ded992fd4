"""The same over a real S3 API: moto's server on loopback, asked through s3fs."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_round_trip import finished, there_and_back

from potstill.core.remote import RemoteStore
from potstill.core.store import Store
from potstill.errors import StoreError

pytestmark = [
    pytest.mark.whole,
    # botocore, aiohttp and werkzeug warn of each other's ways; none of it is ours.
    pytest.mark.filterwarnings("ignore"),
]
BUCKET = "distilled"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def tell(server: str, path: str, body: bytes = b"") -> None:
    """moto's own requests, beside those of S3."""
    kind = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server}/moto-api/{path}", body, kind, method="POST")
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty bucket, reached by what is in the environment alone."""
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTING")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    tell(server, "reset")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    yield f"s3://{BUCKET}/team/project"
    s3fs.S3FileSystem.clear_instance_cache()


def test_results_and_checkpoints_go_to_a_bucket_and_come_back(s3: str, tmp_path: Path) -> None:
    there_and_back(s3, tmp_path)


def test_a_bucket_that_is_not_there_is_one_line(s3: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    remote = RemoteStore("s3://no-such-bucket/x")
    assert remote.manifest("distill", "k1") is None
    with pytest.raises(StoreError, match="there is no such bucket") as raised:
        remote.bring(store, finished(store))
    assert "no-such-bucket" in raised.value.message
    assert store.find("distill", "k1", rehash=True) is not None


def test_keys_that_may_not_are_one_line_without_the_keys(
    s3: str, server: str, tmp_path: Path
) -> None:
    store = Store(tmp_path / "a")
    artifact = finished(store)
    tell(server, "reset-auth", b"0")  # from now on who asks is looked at
    try:
        with pytest.raises(StoreError, match="access was refused") as raised:
            RemoteStore(s3).bring(store, artifact)
    finally:
        tell(server, "reset-auth", b"inf")
    assert "AKIATESTING" not in str(raised.value)
    assert "hidden-secret" not in str(raised.value)
    assert "AWS_PROFILE" in raised.value.hint


def test_no_credentials_and_no_network_are_one_line_each(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StoreError, match="did not answer as it should") as raised:
            RemoteStore(s3).manifest("distill", "k1")
    assert "Check the network" in raised.value.hint
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"no credentials|access was refused") as raised:
        RemoteStore(s3).bring(Store(tmp_path / "a"), finished(Store(tmp_path / "a")))
    assert "AWS_ACCESS_KEY_ID" in raised.value.hint
