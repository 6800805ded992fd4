"""A window of live requests against what the student was taught: which signals have moved.

In: the training questions, once (`Reference`); a window's figures (`Sample`). Out: a `Verdict`,
with each signal's statistic, p-value and shares. Pure: no clock, no file, no model; vectors are
made by the caller. Knows nothing of where requests come from.

Compared with the training rows: the questions' meaning (MMD), topic, length and language, and how
often the answer declines. Compared with the first window of live answers, because training rows do
not hold them: the answers' length and confidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from potstill.errors import InputError
from potstill.serve import drift
from potstill.serve.drift import Floats, Tested

FEWEST_ROWS = 50
MOST_ROWS = 1000
TOPICS = 10
TOPIC_ROWS = 20  # training questions for each topic that is looked for, at least
SIGNALS = {
    "meaning": "meaning of the question",
    "topic": "topic of the question",
    "length": "words of the question",
    "language": "language of the question",
    "refusal": "answers that decline",
    "answer_length": "tokens of the answer",
    "confidence": "confidence of the answer",
}
"""Every signal, with its words for people."""
LIVE = ("answer_length", "confidence")
ROWS, FIRST = "training rows", "first window"
STABLE, LARGE = 0.1, 0.25
"""What folk says of a PSI; of small samples it is noise that reaches them."""


@dataclass(frozen=True)
class Sample:
    """The figures of n requests, or training rows. vectors: unit vectors [n, width], or None
    without an encoder; answer_length, confidence: empty where they are not known of all."""

    length: Sequence[int]
    language: Sequence[str]
    refusal: Sequence[bool]
    vectors: Any = None
    answer_length: Sequence[float] = ()
    confidence: Sequence[float] = ()


@dataclass(frozen=True)
class Signal:
    """One signal of one window.

    value: MMD^2 or PSI. adjusted: the p-value after Holm. shares: (cell, share of the reference,
    share of the window). against: what it is compared with.
    """

    name: str
    statistic: str
    value: float
    p: float
    against: str
    shares: tuple[tuple[str, float, float], ...] = ()
    adjusted: float = 1.0
    alarm: bool = False

    @property
    def folk(self) -> str:
        """What the usual thresholds call it; "" for MMD, which has none."""
        if self.statistic != "psi":
            return ""
        return "stable" if self.value < STABLE else "moved" if self.value < LARGE else "large"


@dataclass(frozen=True)
class Verdict:
    """What came of one window. untested: signal -> why it was not looked at. rows: training
    questions that it was compared with."""

    signals: tuple[Signal, ...]
    untested: dict[str, str] = field(default_factory=dict)
    rows: int = 0

    @property
    def alarm(self) -> bool:
        """Whether any signal has moved."""
        return any(one.alarm for one in self.signals)

    @property
    def moved(self) -> list[str]:
        """The names of those that have."""
        return [one.name for one in self.signals if one.alarm]

    def as_dict(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self) | {"alarm": self.alarm}


def chosen_rows(count: int, most: int = MOST_ROWS) -> list[int]:
    """Which of so many training rows are compared with: all, or so many of them at random, always
    the same."""
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng(count).choice(count, most, replace=False).tolist())


class Reference:
    """What windows are compared with.

    questions: of the training rows, in the sample's order; they name topics.
    Errors: InputError for fewer than 50.
    """

    def __init__(self, sample: Sample, questions: Sequence[str]) -> None:
        if len(questions) < FEWEST_ROWS:
            raise InputError(
                f"Drift is measured against at least {FEWEST_ROWS} different training questions, "
                f"and there are {len(questions)}."
            )
        self.sample, self.size = sample, len(questions)
        digest = hashlib.sha256("\x00".join(questions).encode())
        self.digest = digest.hexdigest()[:16]
        self.bandwidth = 1.0
        self.topics: tuple[str, ...] = ()
        if sample.vectors is not None:
            self._find_topics(questions)

    def _find_topics(self, questions: Sequence[str]) -> None:
        """Topics are found in one half of the rows and counted in the other: rows lie nearer to
        centres that were fitted to them than new ones do."""
        vectors = np.asarray(self.sample.vectors, np.float64)
        self.bandwidth = drift.median_bandwidth(vectors)
        random = np.random.default_rng(self.size)
        order = random.permutation(self.size)
        half = order[: self.size // 2]
        count = max(2, min(TOPICS, len(half) // TOPIC_ROWS))
        self.centres: Floats = drift.centres(vectors[half], count, random)
        near = drift.squared_distances(vectors[half], self.centres).argmin(0)
        self.topics = tuple(questions[half[place]] for place in near)
        self._counted = drift.nearest_centre(vectors[order[self.size // 2 :]], self.centres)

    def verdict(
        self,
        window: Sample,
        first: Mapping[str, Sequence[float]],
        level: float,
        seed: int,
        draws: int = drift.DRAWS,
    ) -> Verdict:
        """Compare a window. first: the first window's values of `LIVE` signals, where there are.

        level: the highest probability that a window like the reference raises an alarm.
        """
        random = np.random.default_rng(seed)
        untested: dict[str, str] = {}
        found: list[Signal] = []
        if self.sample.vectors is None or window.vectors is None:
            why = "the service has no encoder"
            if self.sample.vectors is not None:
                why = "requests were answered without this encoder"
            untested |= dict.fromkeys(("meaning", "topic"), why)
        else:
            tested = drift.mmd_test(
                self.sample.vectors, window.vectors, self.bandwidth, random, draws
            )
            found.append(Signal("meaning", "mmd", tested.value, tested.p, ROWS))
            live = drift.nearest_centre(window.vectors, self.centres)
            names = range(len(self.topics))
            sides = self._counted.tolist(), live.tolist()
            found.append(_categories("topic", names, *sides, random, draws, self.topics))
        found.append(_numbers("length", self.sample.length, window.length, ROWS, random, draws))
        known, live_words = self.sample.language, window.language
        if all(known) and all(live_words):
            languages = sorted({*known, *live_words})
            found.append(_categories("language", languages, known, live_words, random, draws))
        else:
            untested["language"] = "the package py3langid is not installed"
        sides = self.sample.refusal, window.refusal
        found.append(_categories("refusal", (False, True), *sides, random, draws, ("no", "yes")))
        for name in LIVE:
            values = getattr(window, name)
            if not len(values):
                untested[name] = "the engine was not asked for it"
            elif name not in first:
                untested[name] = "this window is what later ones are compared with"
            else:
                found.append(_numbers(name, first[name], values, FIRST, random, draws))
        adjusted = drift.holm({one.name: one.p for one in found})
        signals = tuple(
            Signal(
                **{
                    **vars(one),
                    "adjusted": adjusted[one.name],
                    "alarm": adjusted[one.name] <= level,
                }
            )
            for one in found
        )
        return Verdict(signals, untested, self.size)


def _numbers(
    name: str,
    reference: Sequence[float],
    window: Sequence[float],
    against: str,
    random: np.random.Generator,
    draws: int,
) -> Signal:
    tested, left, right = drift.numbers_test(reference, window, random, draws=draws)
    borders = _borders(reference)
    held = [place for place in range(len(left)) if left[place] + right[place]]
    labels = [borders[place] for place in held]
    return _signal(name, tested, against, labels, left[held], right[held])


def _borders(reference: Sequence[float]) -> list[str]:
    """A label for each cell: the smallest reference value in it."""
    values, counts = np.unique(np.asarray(reference, np.float64), return_counts=True)
    cells = drift.quantile_cells(counts, drift.CELLS)
    labels = []
    for cell in range(drift.CELLS):
        inside = values[cells == cell]
        labels.append(f"from {inside[0]:.4g}" if len(inside) else "")
    return labels


def _categories(
    name: str,
    categories: Sequence[Hashable],
    reference: Sequence[Hashable],
    window: Sequence[Hashable],
    random: np.random.Generator,
    draws: int,
    labels: Sequence[str] | None = None,
) -> Signal:
    left, right = drift.category_counts(categories, reference, window)
    tested = drift.psi_test(left, right, random, draws)
    return _signal(name, tested, ROWS, labels or [str(one) for one in categories], left, right)


def _signal(
    name: str, tested: Tested, against: str, labels: Sequence[str], left: Any, right: Any
) -> Signal:
    a, b = left / max(1, left.sum()), right / max(1, right.sum())
    shares = tuple(
        (label, round(float(p), 4), round(float(q), 4))
        for label, p, q in zip(labels, a, b, strict=True)
    )
    return Signal(name, "psi", tested.value, tested.p, against, shares)
