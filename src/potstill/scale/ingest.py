"""Ingest on Ray: workers read files, the stage puts their records together as ever.

In: what the stage gets, and a place. Out: the same artifact. `RayDesk` is one more desk that the
stage gives its files to. Ray Data maps over the files with a pool of reading actors; each has the
same watched process as on one machine, so that a hostile file ends that and nothing else.
A worker need not see this disk: a file goes to it through Ray, and its records come back so. What
is larger than `LARGEST_SENT` is read here, unless workers can open it by its path. Knows no format.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors, whole_folder, write_atomic
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import PotstillError, error_from
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.desk import Desk, Desks
from potstill.ingest.one import OnSign, Task, part_folder
from potstill.ingest.run import ingest
from potstill.ingest.sources import find_sources
from potstill.scale.cluster import Cluster, connected, gone
from potstill.scale.place import Place

LARGEST_SENT = 32 * 2**20
WAVE_BYTES = 128 * 2**20
"""So much of files is on its way to workers at once, and no more."""
WAVE_FILES = 20_000
FILES_A_TASK = 16
LOOK_SECONDS = 0.05
Outcome = Path | UnusableError


def run(
    config: IngestConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    place: Place,
) -> None:
    """The stage, with its files read at that place. Errors: the stage's, and UnavailableError."""
    from potstill.models.load import load_tokenizer

    tokenizer = draft.work / "tokenizer.json"
    write_atomic(tokenizer, load_tokenizer(config.teacher).backend_tokenizer.to_str())
    files = len(find_sources(config.sources, context.project))
    with (
        Desks(config, draft.work, tokenizer, 1, context.threads) as own,
        connected(place) as cluster,
    ):
        desk = RayDesk(config, draft.work, tokenizer, own, cluster)
        ingest(config, draft, context, desk, ahead=files)
        context.events.metric("files_read_by_workers", desk.read)
        if again := desk.read_again():
            context.events.warning(f"Workers were lost; {again} of their files were read again.")


class RayDesk:
    """Gives files to workers, a wave at a time, and keeps what came of them.

    own: reads what is not sent. read: files that workers have read in this run.
    """

    def __init__(
        self, config: IngestConfig, work: Path, tokenizer: Path, own: Desk, cluster: Cluster
    ) -> None:
        self.config, self.work, self.own, self.cluster = config, work, own, cluster
        self.read = 0
        self._job = {
            "config": config.model_dump(mode="json"),
            "tokenizer": tokenizer.read_text("utf-8"),
            "threads": cluster.place.threads,
        }
        self._pile: deque[Task] = deque()
        self._kept: set[Task] = set()
        self._numbers = 0
        self._waiting: dict[int, Task] = {}
        self._wave: Any = None
        self._done: dict[Task, Outcome] = {}

    def start(self, task: Task) -> None:
        """Put a file on the pile. One that an earlier run has read is done."""
        target = part_folder(self.work, task)
        if target.exists():
            self._done[task] = target
        elif self._is_sent(task):
            self._pile.append(task)
        else:
            self._kept.add(task)
            self.own.start(task)

    def wait(self, task: Task, on_sign: OnSign) -> Path:
        """The folder of a file's records. Errors: UnusableError, PotstillError."""
        if task in self._kept:
            return self.own.wait(task, on_sign)
        while task not in self._done:
            if self._wave is None:
                self._send()
            self._receive()
        outcome = self._done.pop(task)
        if isinstance(outcome, UnusableError):
            raise outcome
        return outcome

    def read_again(self) -> int:
        """Files that a worker had begun when it was lost."""
        return int(self.cluster.ray.get(self.cluster.ledger.repeated.remote()))

    def _is_sent(self, task: Task) -> bool:
        if not task.identity:  # too large for its reader, which says so at once
            return False
        if self.cluster.place.sees_files:
            return True
        with suppress(OSError):
            return task.path.stat().st_size <= LARGEST_SENT
        return False

    def _send(self) -> None:
        """The next wave of the pile, in its order."""
        rows: list[dict[str, Any]] = []
        room = WAVE_BYTES
        while self._pile and len(rows) < WAVE_FILES and room > 0:
            task = self._pile[0]
            row = {"number": self._numbers, "name": task.name, "identity": task.identity}
            if self.cluster.place.sees_files:
                row |= {"path": str(task.path), "content": b""}
            else:
                with disk_errors(task.path, "read"):
                    content = task.path.read_bytes()
                room -= len(content)
                row |= {"path": "", "content": content}
            self._pile.popleft()
            self._waiting[self._numbers] = task
            self._numbers += 1
            rows.append(row)
        cluster = self.cluster
        reading = cluster.ray.remote(read_all).options(num_cpus=0, max_retries=3)
        self._wave = reading.remote(rows, self._job, cluster.workers, cluster.ledger)

    def _receive(self) -> None:
        """What workers have read by now; the wave's end."""
        ray = self.cluster.ray
        try:
            ended, _ = ray.wait([self._wave], timeout=LOOK_SECONDS)
            if ended:
                ray.get(ended[0])
            found, _ = self.cluster.take()
        except PotstillError:
            raise
        except Exception as error:  # whatever Ray raises when the wave is lost for good
            raise gone(self.cluster.place, error) from error
        for number, value in found:
            task = self._waiting.pop(number)
            self._done[task] = self._outcome(task, value)
            self.read += 1
        if ended:
            self._wave = None
            if self._waiting:
                raise gone(self.cluster.place, RuntimeError("files were sent and not read"))

    def _outcome(self, task: Task, value: Mapping[str, Any]) -> Outcome:
        if "error" in value:
            raise error_from(value)
        if "reason" in value:
            return UnusableError(value["reason"], value["detail"])
        target = part_folder(self.work, task)
        with whole_folder(target) as folder:
            for name, content in value["files"].items():
                (folder / name).write_bytes(content)
        return target


# --- on the workers -------------------------------------------------------------------------------


def read_all(rows: list[dict[str, Any]], job: Mapping[str, Any], workers: int, ledger: Any) -> None:
    """A wave of files through Ray Data; what comes of each goes to the ledger. A task of Ray."""
    import ray.data

    options = ray.data.DataContext.get_current()
    options.enable_progress_bars = False
    tasks = max(min(len(rows), 2 * workers), -(-len(rows) // FILES_A_TASK))
    files = ray.data.from_items(rows, override_num_blocks=tasks)
    read = files.map_batches(
        Reader,
        fn_constructor_args=(job, ledger),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=job["threads"],
        max_restarts=-1,
        max_task_retries=-1,
    )
    for _ in read.iter_batches(batch_size=None):
        pass


@dataclass
class Reader:
    """An actor that reads files in a folder of its own, which is gone when it is."""

    job: Mapping[str, Any]
    ledger: Any

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="potstill-read-")
        self._work = Path(self._folder.name)
        tokenizer = self._work / "tokenizer.json"
        tokenizer.write_text(self.job["tokenizer"], "utf-8")
        config = IngestConfig.model_validate(self.job["config"])
        self._desk = Desks(config, self._work / "work", tokenizer, 1, self.job["threads"])

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read the files of a task that nobody has read yet."""
        import ray

        done = set(ray.get(self.ledger.known.remote([int(one) for one in batch["number"]])))
        for row in _rows(batch):
            if row["number"] not in done:
                self.ledger.begin.remote()
                # Waiting holds back a reader that is faster than the records are fetched.
                ray.get(self.ledger.put.remote(row["number"], self._read(row)))
        return {"number": batch["number"]}

    def _read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(row["path"]) if row["path"] else self._copy(row)
        task = Task(row["name"], path, row["identity"])
        self._desk.start(task)
        try:
            part = self._desk.wait(task, lambda done, of, unit: None)
            files = {one.name: one.read_bytes() for one in part.iterdir()}
            shutil.rmtree(part)  # a reader may outlive thousands of files
            return {"files": files}
        except UnusableError as problem:
            return {"reason": problem.reason, "detail": problem.detail}
        except PotstillError as error:
            name = type(error).__name__
            return {"error": name, "message": error.message, "hint": error.hint}
        finally:
            if not row["path"]:
                path.unlink(missing_ok=True)

    def _copy(self, row: Mapping[str, Any]) -> Path:
        """The file as it was sent, under a name with its suffix: that says how it is read."""
        path = self._work / f"{row['number']}-{time.monotonic_ns()}{Path(row['name']).suffix}"
        path.write_bytes(row["content"])
        return path


def _rows(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for place in range(len(batch["number"])):
        yield {
            "number": int(batch["number"][place]),
            "name": str(batch["name"][place]),
            "identity": str(batch["identity"][place]),
            "path": str(batch["path"][place]),
            "content": bytes(batch["content"][place]),
        }
