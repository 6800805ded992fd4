"""The traffic store: what comes back, what is forgotten, and a disk or a file that is not right."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.errors import StoreError, UsageError
from potstill.serve.traffic import Row, TrafficStore, open_existing

CHAT = "/v1/chat/completions"
ROW = Row(
    response="chatcmpl-1", time=1.5, route=CHAT, model="tiny:documents", variant="tiny", key="",
    characters=17, words=3, language="en", answer_tokens=9, confidence=-0.25, refused=False,
    finish="stop", seconds=0.4, first_token=0.1, encoder="e", embedding=b"\x00\x3c",
)  # fmt: skip
VERDICT = {"alarm": True, "signals": [], "untested": {}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TrafficStore]:
    made = TrafficStore(tmp_path / "serve" / "traffic.sqlite", keep=1000)
    yield made
    made.close()


def test_rows_come_back_as_they_went_in_and_only_once(store: TrafficStore) -> None:
    other = replace(ROW, variant="canary")
    store.add([ROW, replace(ROW, route="/v1/completions"), other, ROW])
    found = store.waiting("tiny", [CHAT], 10)
    assert [row for _, row in found] == [ROW, ROW]
    assert store.variants([CHAT]) == ["canary", "tiny"]
    ids = [one for one, _ in found]
    store.add_window("tiny", ids[:1], 0.01, VERDICT, "s", {})
    assert [one for one, _ in store.waiting("tiny", [CHAT], 10)] == ids[1:]
    assert len(store.waiting("canary", [CHAT], 10)) == 1  # another student's windows are its own
    assert store.count() == 4


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = TrafficStore(tmp_path / "t.sqlite", keep=5)
    for place in range(4):
        store.add([replace(ROW, words=10 * place + one) for one in range(3)])
    assert [row.words for _, row in store.waiting("tiny", [CHAT], 99)] == [21, 22, 30, 31, 32]
    store.close()


def test_it_is_its_owners_alone_and_holds_no_words(store: TrafficStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    columns = store._database.execute("SELECT name FROM pragma_table_info('request')").fetchall()
    assert not {"question", "answer", "messages", "text"} & {name for (name,) in columns}


def test_the_first_window_stays_the_first(store: TrafficStore) -> None:
    store.add([ROW] * 2)
    store.add_window("tiny", [1], 0.01, VERDICT, "s", {"confidence": [-0.5]})
    store.add_window("tiny", [2], 0.01, VERDICT, "s", {"confidence": [-9.0]})
    assert store.first_window("tiny", "s") == {"confidence": [-0.5]}
    assert store.first_window("tiny", "another student") == {}


def test_alarms_are_dismissed_and_nothing_else_is(store: TrafficStore) -> None:
    with pytest.raises(UsageError, match=r"no alarm 1\. There was none"):
        store.dismiss(1)
    store.add([ROW] * 3)
    store.add_window("tiny", [1], 0.01, VERDICT, "s", {})
    store.add_window("tiny", [2], 0.01, VERDICT | {"alarm": False}, "s", {})
    store.dismiss(1)
    with pytest.raises(UsageError, match=r"no alarm 2\. Alarms: 1"):
        store.dismiss(2)
    store.alerted(1, "sent")
    first, second = store.windows()
    assert first["dismissed"] is not None
    assert first["alerted"] == "sent"
    assert (second["alarm"], second["dismissed"]) == (False, None)


def test_a_full_disk_is_one_clear_line_and_passes(store: TrafficStore) -> None:
    store.add([ROW])
    store._database.execute("PRAGMA max_page_count=1")
    with pytest.raises(StoreError, match=r"full.*Free some disk space"):
        store.add([replace(ROW, embedding=b"x" * 100_000)])
    store._database.execute("PRAGMA max_page_count=100000")
    store.add([ROW])
    assert store.count() == 2


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traffic.sqlite"
    assert open_existing(path) is None
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=r"not a database. Restore it"):
        open_existing(path)


def test_another_process_reads_and_dismisses_while_it_is_written(store: TrafficStore) -> None:
    other = TrafficStore(store.path)
    threads = [threading.Thread(target=one.add, args=([ROW] * 50,)) for one in (store, other)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert store.count() == other.count() == 100
    other.close()
