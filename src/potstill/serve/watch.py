"""Watches what is answered: a row for each request, a test for each full window, an alarm.

In: answered requests, as they end. Out: rows and verdicts in the traffic store, figures, log lines,
alerts. All of it happens in one thread beside the service: a request hands over and goes on. What
the thread cannot keep up with, or the disk refuses, is counted and lost; no request fails for it.
Knows no HTTP; how a text becomes figures is told by `Reading`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.errors import PotstillError, StoreError
from potstill.serve.alerts import Alerts
from potstill.serve.monitor import Audit, Figures, Log
from potstill.serve.traffic import Row, TrafficStore
from potstill.serve.windows import LIVE, SIGNALS, Reference, Sample, Verdict

MOST_WAITING = 4096
TOGETHER = 16  # requests that are read at once; a search waits no longer than for these
CLOSE_SECONDS = 20.0
CHAT, MARKING = "/v1/chat/completions", "/v1/qa"
ASKED = (CHAT, MARKING)
"""The routes whose requests are questions; others are kept and not compared."""


@dataclass(frozen=True)
class Seen:
    """An answered request, with its words, which go no further than `Reading`.

    alone: the question is known to have no passage around it.
    """

    response: str
    time: float
    route: str
    model: str
    variant: str
    key: str
    question: str
    alone: bool
    refused: bool
    answer_tokens: int
    confidence: float | None
    finish: str
    seconds: float
    first_token: float | None


@dataclass(frozen=True)
class Reading:
    """How texts become figures. language: text -> a code, "" where none can be told. vectors: None
    without an encoder, whose reference is `encoder`."""

    language: Callable[[str], str]
    vectors: Callable[[Sequence[str]], Any] | None = None
    encoder: str = ""
    question: Callable[[str], str] = str
    """What a client sent -> the question in it."""

    def sample(self, questions: Sequence[str], refused: Sequence[bool]) -> Sample:
        """The figures of training rows."""
        return Sample(
            [len(one.split()) for one in questions],
            [self.language(one) for one in questions],
            list(refused),
            np.asarray(self.vectors(list(questions))) if self.vectors is not None else None,
        )


@dataclass(frozen=True)
class Rules:
    """size: requests of a window. level: how likely a clean window may raise an alarm."""

    size: int = 100
    level: float = 0.01


Compared = Callable[[], tuple[Reference | None, str]]
"""Makes what windows are compared with; or None, and why with nothing."""


class Watch:
    """The thread. reference: what windows are compared with; None: rows are kept, no more.

    student: names the model behind the answers; another one has another first window. off: why
    nothing is compared, where it is not.
    """

    def __init__(
        self,
        store: TrafficStore,
        reading: Reading,
        reference: Reference | None,
        rules: Rules,
        figures: Figures,
        log: Log,
        audit: Audit,
        alerts: Alerts | None = None,
        student: Callable[[], str] = str,
        off: str = "",
    ) -> None:
        self.store, self.reference, self.rules = store, reference, rules
        self.off = off
        self._reading, self._figures, self._log, self._audit = reading, figures, log, audit
        self._alerts, self._student = alerts, student
        self._jobs: queue.Queue[Seen | Compared | None] = queue.Queue(MOST_WAITING)
        self._failing = False
        for window in store.windows():
            self._show(window)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def note(self, seen: Seen) -> None:
        """Hand a request over; returns at once."""
        try:
            self._jobs.put_nowait(seen)
        except queue.Full:
            self._figures.traffic_lost.labels("too_fast").inc()

    def compare_with(self, made: Compared) -> None:
        """Another version serves: compare with its rows from here on. made: makes them, beside the
        service. Returns at once."""
        try:
            self._jobs.put_nowait(made)
        except queue.Full:
            self._log("drift_off", reason="too many requests wait to be kept")
            self.reference = None  # rather than with rows of another student

    def close(self) -> None:
        """Write what waits, and end."""
        try:
            self._jobs.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        except queue.Full:
            pass
        if self._alerts is not None:
            self._alerts.close()
        self.store.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._jobs.get()]
            while isinstance(batch[-1], Seen) and len(batch) < TOGETHER and not self._jobs.empty():
                batch.append(self._jobs.get())
            seen = [one for one in batch if isinstance(one, Seen)]
            if seen:
                self._guarded(seen)
            last = batch[-1]
            ended = last is None
            if callable(last):
                self._compare_anew(last)

    def _compare_anew(self, made: Compared) -> None:
        self.reference, self.off = None, "the rows of the version that serves are being read"
        try:
            self.reference, self.off = made()
        except Exception as error:
            self.off = str(error) if isinstance(error, PotstillError) else repr(error)[:300]
            self._complain("drift_off", error)

    def _guarded(self, seen: list[Seen]) -> None:
        """Nothing that happens here may end the thread."""
        try:
            self.store.add(self._rows(seen))
        except Exception as error:
            reason = "store" if isinstance(error, StoreError) else "failed"
            self._figures.traffic_lost.labels(reason).inc(len(seen))
            self._complain("traffic_not_kept", error)
            return
        self._figures.traffic_kept.inc(len(seen))
        self._failing = False
        try:
            for variant in sorted({one.variant for one in seen}):
                self._windows(variant)
        except Exception as error:
            self._complain("drift_not_tested", error)

    def _complain(self, event: str, error: Exception) -> None:
        """Once until it goes well again: a full disk is no reason to fill the log too."""
        if not self._failing:
            words = str(error) if isinstance(error, PotstillError) else repr(error)[:300]
            self._log(event, reason=words)
        self._failing = True

    def _rows(self, seen: Sequence[Seen]) -> list[Row]:
        asked = [
            one.question if one.alone else self._reading.question(one.question) for one in seen
        ]
        vectors: Any = [None] * len(seen)
        if self._reading.vectors is not None:
            found = self._reading.vectors(asked)
            vectors = [row.astype("<f2").tobytes() for row in np.asarray(found)]
        return [
            Row(
                one.response,
                one.time,
                one.route,
                one.model,
                one.variant,
                one.key,
                len(question),
                len(question.split()),
                self._reading.language(question),
                one.answer_tokens,
                one.confidence,
                one.refused,
                one.finish,
                one.seconds,
                one.first_token,
                self._reading.encoder if vector is not None else "",
                vector,
            )
            for one, question, vector in zip(seen, asked, vectors, strict=True)
        ]

    def _windows(self, variant: str) -> None:
        """Compare each full window of a variant's requests."""
        while self.reference is not None:
            found = self.store.waiting(variant, ASKED, self.rules.size)
            if len(found) < self.rules.size:
                return
            ids, rows = [one for one, _ in found], [row for _, row in found]
            student = f"{self._student()} {self.reference.digest}"
            first = self.store.first_window(variant, student)
            sample = sample_of(rows, self._reading.encoder)
            verdict = self.reference.verdict(sample, first, self.rules.level, seed=ids[0])
            new = {
                name: getattr(sample, name)
                for name in LIVE
                if name not in first and len(getattr(sample, name))
            }
            before = [one for one in self.store.windows() if one["variant"] == variant][-1:]
            window = self.store.add_window(
                variant, ids, self.rules.level, verdict.as_dict(), student, new
            )
            lasting = any(one["alarm"] and one["dismissed"] is None for one in before)
            self._tell(window, verdict, lasting)

    def _tell(self, window: dict[str, Any], verdict: Verdict, lasting: bool) -> None:
        self._show(window)
        outcome = "alarm" if verdict.alarm else "calm"
        self._figures.drift_windows.labels(window["variant"], outcome).inc()
        if not verdict.alarm:
            return
        about = {"window": window["id"], "variant": window["variant"], "moved": verdict.moved}
        self._audit("drift_alarm", **about)
        self._log("drift_alarm", **about)
        if self._alerts is None or lasting:  # an alarm that lasts was told when it began
            return

        def told(arrived: bool, words: str) -> None:
            outcome = "sent" if arrived else "failed"
            self._figures.alerts.labels(outcome).inc()
            if not arrived:
                self._log("alert_not_sent", window=window["id"], reason=words)
            try:
                self.store.alerted(window["id"], outcome)
            except StoreError as error:
                self._log("alert_not_noted", reason=str(error))

        self._alerts.send(payload_of(window, verdict), told)

    def _show(self, window: dict[str, Any]) -> None:
        """The newest window as figures."""
        variant = window["variant"]
        self._figures.drift_alarm.labels(variant).set(
            float(window["alarm"] and window["dismissed"] is None)
        )
        for one in window["verdict"]["signals"]:
            self._figures.drift_p.labels(variant, one["name"]).set(one["p"])
            gauge = (
                self._figures.drift_psi if one["statistic"] == "psi" else self._figures.drift_mmd
            )
            gauge.labels(variant, one["name"]).set(one["value"])


def sample_of(rows: Sequence[Row], encoder: str) -> Sample:
    """The figures of a window. A vector of another encoder makes the meaning unknown for the whole
    window; confidence is unknown where more than one answer in ten has none."""
    vectors = None
    if encoder and all(row.encoder == encoder and row.embedding for row in rows):
        vectors = np.stack(
            [np.frombuffer(row.embedding or b"", "<f2").astype(np.float64) for row in rows]
        )
    sure = [row.confidence for row in rows if row.confidence is not None]
    return Sample(
        [row.words for row in rows],
        [row.language for row in rows],
        [bool(row.refused) for row in rows],
        vectors,
        [float(row.answer_tokens) for row in rows],
        sure if len(sure) >= 0.9 * len(rows) else (),
    )


def payload_of(window: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """What an alert says. No words of any request."""
    moved = [one for one in verdict.signals if one.alarm]
    words = ", ".join(SIGNALS[one.name] for one in moved)
    return {
        "event": "drift_alarm",
        "window": window["id"],
        "variant": window["variant"],
        "requests": window["requests"],
        "level": window["level"],
        "text": f"{window['variant']}: {words} moved away from what the student was taught, in "
        f"the last {window['requests']} requests.",
        "signals": [
            {
                "name": one.name,
                "statistic": one.statistic,
                "value": one.value,
                "p": one.p,
                "adjusted": one.adjusted,
            }
            for one in moved
        ],
    }
