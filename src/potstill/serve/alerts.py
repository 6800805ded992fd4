"""Tells an address of an alarm: a POST of JSON that is tried a few times and blocks nobody.

In: a URL, a payload. Out: whether it arrived, told to a callback. One thread, one alert after the
other. The URL may hold a secret, so only its host is ever named. Knows nothing of drift.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from potstill.core.extras import require
from potstill.errors import UsageError

ALERT_KEY = "POTSTILL_ALERT_KEY"
"""Environment variable whose value is sent as a bearer token."""
PAUSES = (1.0, 5.0, 25.0)  # seconds before the next try
SECONDS = 10.0
MOST_WAITING = 100
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
Told = Callable[[bool, str], None]
"""(arrived, words about it)."""


class Alerts:
    """An address that is told. pauses: seconds between tries.

    Errors: UsageError for what is no http or https address.
    """

    def __init__(self, url: str, pauses: tuple[float, ...] = PAUSES) -> None:
        try:
            parts = urlsplit(url)
            self.host, fits = parts.hostname or "", parts.scheme in {"http", "https"}
        except ValueError:
            self.host, fits = "", False
        if not fits or not self.host:
            raise UsageError(
                "The address of --alert has to begin with http:// or https:// and name a host."
            )
        self._http: Any = require("httpx2", "serve", "Serving a student")
        self._url, self._pauses = url, pauses
        self._jobs: queue.Queue[tuple[dict[str, Any], Told] | None] = queue.Queue(MOST_WAITING)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def send(self, payload: dict[str, Any], told: Told) -> None:
        """Returns at once; `told` is called from another thread, or here if too many wait."""
        try:
            self._jobs.put_nowait((payload, told))
        except queue.Full:
            told(False, f"{MOST_WAITING} alerts wait already")

    def close(self, seconds: float = 5.0) -> None:
        """Give up pauses, and wait so long for the try under way."""
        self._ended.set()
        try:
            self._jobs.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            payload, told = job
            told(*self._tried(payload))

    def _tried(self, payload: dict[str, Any]) -> tuple[bool, str]:
        words = ""
        for pause in (*self._pauses, None):
            final, words = self._once(payload)
            if final or pause is None or self._ended.wait(pause):
                break
        return words == "", words

    def _once(self, payload: dict[str, Any]) -> tuple[bool, str]:
        """(whether another try is of no use, what went wrong; "": nothing)."""
        key = os.environ.get(ALERT_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = self._http.post(
                self._url,
                json=payload,
                headers=headers,
                timeout=SECONDS,
                follow_redirects=False,
                trust_env=self.host not in LOOPBACK,
            )
        except (self._http.HTTPError, self._http.InvalidURL, OSError, ValueError) as error:
            return False, type(error).__name__  # its words may hold the address
        if 200 <= answer.status_code < 300:
            return True, ""
        passing = answer.status_code in {408, 425, 429} or answer.status_code >= 500
        return not passing, f"status {answer.status_code}"
