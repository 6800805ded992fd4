"""The watch: a row for each request, a test for each window, one alert for an alarm that lasts."""

from __future__ import annotations

import io
import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webhook import webhook

from potstill.errors import StoreError
from potstill.serve.alerts import Alerts
from potstill.serve.confidence import ask_for, taken
from potstill.serve.monitor import Audit, Figures, Log
from potstill.serve.report import summary
from potstill.serve.traffic import TrafficStore
from potstill.serve.watch import CHAT, Reading, Rules, Seen, Watch
from potstill.serve.windows import Reference

WORDS = "how many litres of water does the boiler of the seventh unit hold today".split()


def vectors(texts: Any) -> Any:
    """By the texts' own words: the same text, the same vector."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=4) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


READING = Reading(
    language=lambda text: "fr" if "eau" in text else "en",
    vectors=vectors,
    encoder="toy",
    question=lambda turn: turn.rpartition("\n\n")[2],
)


def asked(seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, random.integers(4, 12)))


def seen(place: int, question: str | None = None, **more: Any) -> Seen:
    fields: dict[str, Any] = {
        "response": f"chatcmpl-{place}", "time": float(place), "route": CHAT, "model": "tiny",
        "variant": "tiny", "key": "", "question": question or asked(1000 + place), "alone": False,
        "refused": False, "answer_tokens": 5 + place % 4, "confidence": -0.1 * (place % 7),
        "finish": "stop", "seconds": 0.2, "first_token": 0.1,
    }  # fmt: skip
    return Seen(**(fields | more))


class Watched:
    """A watch, and all that it tells."""

    def __init__(self, folder: Path, alerts: Alerts | None = None, compared: bool = True) -> None:
        questions = sorted({asked(seed) for seed in range(80)})
        reference = Reference(READING.sample(questions, [False] * len(questions)), questions)
        self.log, self.figures = io.StringIO(), Figures()
        log = Log(self.log)
        self.folder = folder
        self.watch = Watch(
            TrafficStore(folder / "traffic.sqlite"),
            READING,
            reference if compared else None,
            Rules(size=30, level=0.01),
            self.figures,
            log,
            Audit(folder / "audit.jsonl", log),
            alerts,
            lambda: "student.gguf",
        )

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, self.log.getvalue()
            time.sleep(0.01)

    def windows(self) -> list[dict[str, Any]]:
        return self.watch.store.windows()


def french(place: int) -> Seen:
    return seen(place, f"Combien de litres d'eau, numéro {place} ?")


def test_windows_alarms_and_alerts(tmp_path: Path) -> None:
    with webhook(500, 204) as hook:
        one = Watched(tmp_path, Alerts(hook.url, (0.01,)))
        for place in range(45):
            one.watch.note(seen(place))
        one.until(lambda: len(one.windows()) == 1)
        for place in range(45, 130):
            one.watch.note(french(place))
        one.until(lambda: len(one.windows()) == 4)
        one.until(lambda: [w["alerted"] for w in one.windows()] == ["", "sent", "", ""])
        calm, *alarms = one.windows()
        assert [w["alarm"] for w in (calm, *alarms)] == [False, True, True, True]
        assert "language" in one.windows()[1]["verdict"]["signals"][3]["name"]
        assert len(hook.came) == 2  # one alarm that lasts is told once; the first try failed
        body = hook.came[1][1]
        assert body["event"] == "drift_alarm"
        assert body["window"] == 2
        assert "language of the question" in body["text"]
        assert "litres" not in json.dumps(body)
        # marked as false, it is told of anew
        one.watch.store.dismiss(4)
        for place in range(130, 160):
            one.watch.note(french(place))
        one.until(lambda: len(hook.came) == 3)
        text = one.figures.text().decode()
        assert 'potstill_drift_alarm{variant="tiny"} 1.0' in text
        assert 'potstill_drift_windows_total{outcome="alarm",variant="tiny"} 4.0' in text
        assert 'potstill_drift_psi{signal="language",variant="tiny"}' in text
        assert 'potstill_drift_p_value{signal="meaning",variant="tiny"}' in text
        one.watch.close()
    assert (tmp_path / "audit.jsonl").read_text().count('"drift_alarm"') == 4
    again = Watched(tmp_path)  # what was the newest window is shown after a restart
    assert 'potstill_drift_alarm{variant="tiny"} 1.0' in again.figures.text().decode()
    about = summary("run", again.watch.store)["variants"]["tiny"]
    assert about == {
        "windows": 5, "alarms": 4, "dismissed": 1, "by_chance": 0.05, "waiting": 10,
        "state": "alarm",
    }  # fmt: skip
    again.watch.close()


def test_what_is_kept_of_a_request(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    one.watch.note(seen(1, "A long passage.\n\nHow many litres?", refused=True))
    one.watch.note(seen(2, route="/v1/completions", variant="canary", confidence=None))
    one.watch.note(seen(3, "In short:\n\nhow many litres?", variant="alone", alone=True))
    one.watch.close()
    store = TrafficStore(tmp_path / "traffic.sqlite")
    ((_, row),) = store.waiting("tiny", [CHAT], 9)
    assert store.waiting("alone", [CHAT], 9)[0][1].words == 5
    assert (row.words, row.characters, row.language, row.refused) == (3, 16, "en", 1)
    kept = np.frombuffer(row.embedding or b"", "<f2")
    assert kept == pytest.approx(vectors(["How many litres?"])[0], abs=1e-3)
    assert store.count() == 3
    store.close()
    for file in tmp_path.iterdir():
        assert b"litres" not in file.read_bytes()


def test_each_students_requests_are_windows_of_their_own(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    for place in range(40):
        one.watch.note(seen(place, variant="canary" if place % 2 else "tiny"))
    one.watch.close()
    store = TrafficStore(tmp_path / "traffic.sqlite")
    assert store.windows() == []
    assert [len(store.waiting(name, [CHAT], 99)) for name in ("tiny", "canary")] == [20, 20]
    store.close()


def test_a_full_disk_costs_rows_and_no_request(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    one.watch.store._database.execute("PRAGMA max_page_count=1")
    for place in range(400):
        one.watch.note(seen(place))
    lost = one.figures.traffic_lost.labels("store")._value
    one.until(lambda: lost.get() > 100)
    one.watch.store._database.execute("PRAGMA max_page_count=100000")
    one.until(lambda: one.watch._jobs.empty())
    one.watch.note(seen(999))
    one.watch.close()
    lines = [json.loads(line) for line in one.log.getvalue().splitlines()]
    failed = [line for line in lines if line["event"] == "traffic_not_kept"]
    assert len(failed) == 1  # told once, not four hundred times
    assert "Free some disk space" in failed[0]["reason"]
    store = TrafficStore(tmp_path / "traffic.sqlite")
    assert store.count() >= 1
    store.close()


def test_a_store_that_is_damaged_while_it_runs_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Watched(tmp_path)

    def broken(*_: Any) -> Any:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patched:
        patched.setattr(one.watch.store, "waiting", broken)
        one.watch.note(seen(1))
        one.until(lambda: "unforeseen" in one.log.getvalue())
    one.watch.note(seen(2))
    one.until(lambda: one.watch.store.count() == 2)
    one.watch.close()


def test_without_training_rows_requests_are_kept_and_not_compared(tmp_path: Path) -> None:
    one = Watched(tmp_path, compared=False)
    for place in range(35):
        one.watch.note(seen(place))
    one.watch.close()
    store = TrafficStore(tmp_path / "traffic.sqlite")
    assert (store.count(), store.windows()) == (35, [])
    store.close()


def test_log_probabilities_are_asked_for_and_taken_out() -> None:
    body: dict[str, Any] = {}
    assert ask_for(body, False) is None
    assert body == {}
    assert ask_for(body, True) is None
    assert body == {"logprobs": True, "top_logprobs": 1}
    assert ask_for(three := {"logprobs": True, "top_logprobs": 3}, True) == 3
    assert three["top_logprobs"] == 3
    assert ask_for(none := {"logprobs": True, "top_logprobs": 0}, False) == 0
    assert none["top_logprobs"] == 1

    def choice() -> dict[str, Any]:
        rows = [
            {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]},
            {"token": "b", "logprob": float("-inf"), "top_logprobs": []},
        ]
        return {"delta": {"content": "ab"}, "logprobs": {"content": rows}}

    assert taken(hidden := choice(), None) == [-0.5]
    assert "logprobs" not in hidden
    assert taken(bare := choice(), 0) == [-0.5]
    assert [one["top_logprobs"] for one in bare["logprobs"]["content"]] == [[], []]
    assert taken(full := choice(), 3) == [-0.5]
    assert full == choice()
    assert taken({"delta": {}}, None) == taken({"logprobs": None}, 2) == []


def test_another_version_is_compared_with_its_own_rows(tmp_path: Path) -> None:
    one = Watched(tmp_path)
    for place in range(30):
        one.watch.note(french(place))
    questions = [french(place).question for place in range(2000, 2080)]
    one.watch.compare_with(
        lambda: (Reference(READING.sample(questions, [False] * 80), questions), "")
    )
    for place in range(30, 60):
        one.watch.note(french(place))
    one.until(lambda: len(one.windows()) == 2)
    assert [window["alarm"] for window in one.windows()] == [True, False]

    def broken() -> tuple[Reference | None, str]:
        raise StoreError("There are no rows.")

    one.watch.compare_with(lambda: (None, "too few rows"))
    for place in range(60, 90):
        one.watch.note(seen(place))
    one.until(lambda: one.watch.off == "too few rows")
    one.watch.compare_with(broken)
    one.until(lambda: "There are no rows." in one.watch.off)
    assert len(one.windows()) == 2  # nothing is compared, and no thread has ended
    one.watch.close()
    assert "There are no rows." in one.log.getvalue()


def test_where_too_much_waits_nothing_is_compared_with_foreign_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Watched(tmp_path)

    def full(job: object) -> None:
        raise queue.Full

    monkeypatch.setattr(one.watch._jobs, "put_nowait", full)
    one.watch.compare_with(lambda: (one.watch.reference, ""))
    assert one.watch.reference is None
    assert "drift_off" in one.log.getvalue()
    one.watch.close()
