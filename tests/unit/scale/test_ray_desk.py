"""The desk that gives files to workers, with workers that read at once in place of Ray's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.core.files import file_digest
from potstill.errors import MissingExtraError, PotstillError
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.one import Task, part_folder
from potstill.scale import ingest as module
from potstill.scale.cluster import Cluster, Ledger
from potstill.scale.ingest import RayDesk
from potstill.scale.place import Place


class Ray:
    """What `RayDesk` uses of Ray: a wave is read when it is sent."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.waves: list[list[dict[str, Any]]] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.lost = ""

    def remote(self, function: Any) -> Any:
        made = SimpleNamespace(remote=self.read)
        return SimpleNamespace(options=lambda **more: made)

    def read(self, rows: list[dict[str, Any]], job: Any, workers: int, ledger: Any) -> str:
        self.waves.append(rows)
        for row in rows:
            if row["name"] == self.lost:
                continue
            content = row["content"] or Path(row["path"]).read_bytes()
            made = {"files": {"documents.jsonl": content, "summary.json": b"{}"}}
            self.ledger.put(row["number"], self.results.get(row["name"], made))
        return "ended"

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return calls, []

    def get(self, value: Any) -> Any:
        return value


class OwnDesk:
    """Reads here."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def start(self, task: Task) -> None:
        self.read.append(task.name)

    def wait(self, task: Task, on_sign: Any) -> Path:
        return Path("here") / task.name


@pytest.fixture
def ray() -> Ray:
    return Ray()


def desk(tmp_path: Path, ray: Ray, place: Place) -> RayDesk:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", "utf-8")
    ledger = SimpleNamespace(
        take=SimpleNamespace(remote=ray.ledger.take),
        repeated=SimpleNamespace(remote=ray.ledger.repeated),
    )
    cluster = Cluster(ray, place, 2, ledger)
    config = IngestConfig.model_validate({"sources": ["."], "teacher": "some/model"})
    return RayDesk(config, tmp_path / "work", tokenizer, OwnDesk(), cluster)


def task(tmp_path: Path, name: str, content: bytes) -> Task:
    path = tmp_path / name
    path.write_bytes(content)
    return Task(name, path, file_digest(path)[:16])


def quiet(done: int, of: int, unit: str) -> None:
    """Hears no sign."""


AWAY = Place("ray://head:10001")


def test_files_go_by_their_content_where_no_worker_sees_them(tmp_path: Path, ray: Ray) -> None:
    there = desk(tmp_path, ray, AWAY)
    tasks = [task(tmp_path, f"{n}.md", b"text %d" % n) for n in range(3)]
    for one in tasks:
        there.start(one)
    assert not ray.waves  # all that is known is sent at once, when the first is waited for
    folders = [there.wait(one, quiet) for one in tasks]
    assert [(row["path"], row["content"]) for row in ray.waves[0]] == [
        ("", b"text 0"),
        ("", b"text 1"),
        ("", b"text 2"),
    ]
    assert folders == [part_folder(tmp_path / "work", one) for one in tasks]
    assert (folders[1] / "documents.jsonl").read_bytes() == b"text 1"
    assert there.read == 3


@pytest.mark.parametrize("place", [Place("ray"), Place("ray://head:10001", shared=True)])
def test_files_go_by_their_path_where_workers_see_them(
    tmp_path: Path, ray: Ray, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_SENT", 3)
    there = desk(tmp_path, ray, place)
    one = task(tmp_path, "a.md", b"text")
    there.start(one)
    there.wait(one, quiet)
    assert [(row["path"], row["content"]) for row in ray.waves[0]] == [(str(one.path), b"")]


def test_large_files_stay_here(tmp_path: Path, ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_SENT", 3)
    there = desk(tmp_path, ray, AWAY)
    large, small = task(tmp_path, "large.md", b"text"), task(tmp_path, "small.md", b"tex")
    there.start(large)
    there.start(small)
    assert there.wait(large, quiet) == Path("here") / "large.md"
    there.wait(small, quiet)
    assert [row["name"] for wave in ray.waves for row in wave] == ["small.md"]


def test_no_more_is_under_way_than_a_wave(
    tmp_path: Path, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAVE_BYTES", 10)
    there = desk(tmp_path, ray, AWAY)
    tasks = [task(tmp_path, f"{n}.md", b"%06d" % n) for n in range(5)]
    for one in tasks:
        there.start(one)
    for one in reversed(tasks):  # whoever waits, waves go in the order of the pile
        there.wait(one, quiet)
    assert [len(wave) for wave in ray.waves] == [2, 2, 1]


def test_what_an_earlier_run_has_read_is_not_sent(tmp_path: Path, ray: Ray) -> None:
    first = desk(tmp_path, ray, AWAY)
    one = task(tmp_path, "a.md", b"text")
    first.start(one)
    folder = first.wait(one, quiet)
    again = desk(tmp_path, ray, AWAY)
    again.start(one)
    assert again.wait(one, quiet) == folder
    assert len(ray.waves) == 1


def test_what_workers_say_of_a_file(tmp_path: Path, ray: Ray) -> None:
    ray.results = {
        "bad.pdf": {"reason": "unreadable", "detail": "it is broken"},
        "b.md": {"error": "MissingExtraError", "message": "It needs lxml.", "hint": "Install it."},
    }
    there = desk(tmp_path, ray, AWAY)
    bad, other = task(tmp_path, "bad.pdf", b"%PDF"), task(tmp_path, "b.md", b"text")
    there.start(bad)
    with pytest.raises(UnusableError, match="it is broken"):
        there.wait(bad, quiet)
    assert not part_folder(tmp_path / "work", bad).exists()
    there.start(other)
    with pytest.raises(MissingExtraError, match="It needs lxml"):
        there.wait(other, quiet)


def test_a_wave_that_ends_without_all_its_files(tmp_path: Path, ray: Ray) -> None:
    ray.lost = "a.md"
    there = desk(tmp_path, ray, AWAY)
    one = task(tmp_path, "a.md", b"text")
    there.start(one)
    with pytest.raises(PotstillError, match="do not stay"):
        there.wait(one, quiet)
