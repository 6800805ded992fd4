"""Alerts: tried again where that may help, never where it cannot, and blocking nobody."""

from __future__ import annotations

import threading
import time

import pytest
from webhook import webhook

from potstill.errors import UsageError
from potstill.serve.alerts import MOST_WAITING, Alerts

SOON = (0.01, 0.01, 0.01)


def outcome_of(url: str, pauses: tuple[float, ...] = SOON) -> tuple[bool, str]:
    alerts, told, found = Alerts(url, pauses), threading.Event(), []

    def on_told(arrived: bool, words: str) -> None:
        found.append((arrived, words))
        told.set()

    alerts.send({"event": "drift_alarm"}, on_told)
    assert told.wait(20)
    alerts.close()
    ((arrived, words),) = found
    return arrived, words


def test_it_arrives_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_ALERT_KEY", "hush")
    with webhook(204) as hook:
        assert outcome_of(hook.url) == (True, "")
    ((headers, body),) = hook.came
    assert headers["authorization"] == "Bearer hush"
    assert headers["content-type"] == "application/json"
    assert body == {"event": "drift_alarm"}


def test_without_a_key_there_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_ALERT_KEY", raising=False)
    with webhook(200) as hook:
        assert outcome_of(hook.url)[0]
    assert "authorization" not in hook.came[0][0]


@pytest.mark.parametrize(
    ("statuses", "tries", "outcome"),
    [
        ((503, 429, 200), 3, (True, "")),
        ((500,), 4, (False, "status 500")),
        ((401,), 1, (False, "status 401")),
        ((302,), 1, (False, "status 302")),  # a redirection is not followed: the key went along
    ],
)
def test_tries(statuses: tuple[int, ...], tries: int, outcome: tuple[bool, str]) -> None:
    with webhook(*statuses) as hook:
        assert outcome_of(hook.url) == outcome
    assert len(hook.came) == tries


def test_nobody_there_is_said_without_the_address() -> None:
    arrived, words = outcome_of("http://127.0.0.1:9/token-in-here")
    assert not arrived
    assert words
    assert "token" not in words


def test_an_address_that_hangs_blocks_nobody() -> None:
    alerts, lost = Alerts("http://127.0.0.1:9/", (30.0,)), []
    began = time.monotonic()
    for _ in range(MOST_WAITING + 5):
        alerts.send({}, lambda arrived, words: lost.append(words))
    assert time.monotonic() - began < 2
    assert f"{MOST_WAITING} alerts wait already" in lost
    alerts.close(1.0)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.b/c", "example.com", "http://", "http://["]
)
def test_other_addresses_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match=r"--alert has to begin with http://"):
        Alerts(url)
