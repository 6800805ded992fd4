"""The ingest stage: every source file becomes records, or a reason why not.

In: an IngestConfig. Out: in the draft's data documents.jsonl and chunks.jsonl (what the teacher is
asked about), rows.jsonl and contexts.jsonl (ready-made rows and their passages), rejected.jsonl.
Files are read by processes of their own (`desk.py`), and their records put together here in the
order of the sources, so that the number of processes does not show. What a file gave is kept in
the draft's work folder: a killed run reads no file twice, and looks at no page twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors, file_digest, write_atomic
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.desk import Desk, Desks
from potstill.ingest.one import NAMES, STAGE, Task, summary_of
from potstill.ingest.readers import unreadable
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.ingest.row_files import STREAMED
from potstill.ingest.sources import SourceFile, find_sources
from potstill.records import Rejected, short_id

REMEDY = "Replace the file, or name other documents in ingest.sources."
AHEAD = 4
"""So many files a process are read before their turn has come, and no more."""


def run(
    config: IngestConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage with the teacher's tokenizer as the measure of chunks."""
    from potstill.models.load import load_tokenizer

    tokenizer = draft.work / "tokenizer.json"
    write_atomic(tokenizer, load_tokenizer(config.teacher).backend_tokenizer.to_str())
    files = len(find_sources(config.sources, context.project))
    processes = max(1, min(config.processes or context.threads, files))
    with Desks(config, draft.work, tokenizer, processes, context.threads) as desks:
        ingest(config, draft, context, desks, AHEAD * processes)


def ingest(
    config: IngestConfig, draft: Draft, context: Context, desk: Desk, ahead: int = AHEAD
) -> None:
    """Read every source of `config` at `desk`, up to `ahead` of them before their turn.

    Errors: InputError when a source is missing or no file can be used.
    """
    files = find_sources(config.sources, context.project)
    turns = _Turns(config, files, desk, ahead)
    problems: list[tuple[str, UnusableError]] = []
    with Results(draft, context) as results:
        for number, file in enumerate(files):
            on_sign = partial(_progress, context, file.name, number, len(files))
            try:
                folder = turns.read(number, on_sign)
            except UnusableError as problem:
                problems.append((file.name, problem))
                results.reject(file.name, problem)
            else:
                results.take(file.name, folder)
            context.events.progress(number + 1, len(files), "files", step=file.name)
        if not results.counts["documents"] and not results.counts["rows"]:
            raise _nothing_usable([*problems, *results.unusable])
        for name in ("documents", "chunks", "rows"):
            context.events.metric(name, results.counts[name])


def _progress(
    context: Context, name: str, number: int, of: int, done: int, all_of_it: int, unit: str
) -> None:
    """Something of a file is done: file `number` of `of` is that much further."""
    share = number + done / (all_of_it + 1)
    pages = {"page": done, "pages": all_of_it} if unit == "page" else {}
    context.events.progress(share, of, "files", step=name, **pages)


class _Turns:
    """Gives files to the desk before their turn, and takes what they gave in their order.

    Of files with the same content the first that can be used is read; the others wait for it.
    """

    def __init__(
        self, config: IngestConfig, files: list[SourceFile], desk: Desk, ahead: int
    ) -> None:
        self.config, self.files, self.desk, self.ahead = config, files, desk, ahead
        self._tasks: list[Task | UnusableError] = []
        self._first: dict[str, int] = {}
        self._used: dict[str, str] = {}

    def read(self, number: int, on_sign: Any) -> Path:
        """The folder of records of file `number`. Errors: UnusableError."""
        while len(self._tasks) < min(len(self.files), number + 1 + self.ahead):
            self._prepare(len(self._tasks))
        task = self._tasks[number]
        if isinstance(task, UnusableError):
            raise task
        if task.identity and self._first[task.identity] != number:
            if task.identity in self._used:
                before = self._used[task.identity]
                raise UnusableError("duplicate_file", f"the same content as {before}")
            self.desk.start(task)
        folder = self.desk.wait(task, on_sign)
        if task.identity:
            self._used[task.identity] = task.name
        return folder

    def _prepare(self, number: int) -> None:
        file = self.files[number]
        try:
            with unreadable():
                identity = "" if self._too_large(file) else file_digest(file.path)[:16]
        except UnusableError as problem:
            self._tasks.append(problem)
            return
        task = Task(file.name, file.path, identity)
        self._tasks.append(task)
        if not identity or self._first.setdefault(identity, number) == number:
            self.desk.start(task)

    def _too_large(self, file: SourceFile) -> bool:
        """Whether the reader will refuse it by its size, so that it need not be hashed."""
        if ROW_KINDS.get(file.path.suffix.lower()) in STREAMED:
            return False
        return file.path.stat().st_size > self.config.max_file_bytes


class Results:
    """The stage's files, put together from what each source gave."""

    def __init__(self, draft: Draft, context: Context) -> None:
        self.draft, self.events = draft, context.events
        self.counts = dict.fromkeys(NAMES, 0)
        self.unusable: list[tuple[str, UnusableError]] = []
        self._files = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Results:
        with ExitStack() as files:
            for name in NAMES:
                path = self.draft.data / f"{name}.jsonl"
                with disk_errors(path, "write"):
                    self._open[name] = files.enter_context(path.open("wb"))
            self._files = files.pop_all()
        return self

    def __exit__(self, *problem: object) -> None:
        with disk_errors(self.draft.data, "write"), self._files:
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())

    def take(self, name: str, folder: Path) -> None:
        """All records of one source, and what the run's diary should say of it."""
        summary = summary_of(folder)
        for kind in NAMES:
            source, target = folder / f"{kind}.jsonl", self.draft.data / f"{kind}.jsonl"
            with disk_errors(target, "write"), source.open("rb") as part:
                shutil.copyfileobj(part, self._open[kind], 1 << 20)
            self.counts[kind] += summary["counts"][kind]
        for event in _rejects(name, summary):
            self.events.emit("rejected", **event)
        for note in summary["notes"]:
            self.events.emit("warning", message=f"{name} {note}.")
        if not summary["counts"]["documents"] and not summary["counts"]["rows"]:
            first = summary["named"][0]
            words = first["detail"].removeprefix(f"{name}, ")
            self.unusable.append((name, UnusableError(first["reason"], words)))

    def reject(self, name: str, problem: UnusableError) -> None:
        """A source that cannot be used, in the file and in the run's diary."""
        identity = short_id("file", name)
        reason, detail = problem.reason, problem.detail
        record = Rejected(
            id=identity, stage=STAGE, reason=reason, detail=detail, row={"source": name}
        )
        with disk_errors(self.draft.data / "rejected.jsonl", "write"):
            self._open["rejected"].write((record.model_dump_json() + "\n").encode())
        self.counts["rejected"] += 1
        self.events.emit("rejected", id=identity, reason=reason, detail=f"{name}: {detail}")


def _rejects(name: str, summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The first rejects one by one, all others as a number for each reason."""
    left = dict(summary["reasons"])
    for event in summary["named"]:
        left[event["reason"]] -= 1
        yield event
    for reason, count in left.items():
        if count:
            detail = f"{name}: {count:,} more"
            yield {"id": short_id("file", name), "reason": reason, "detail": detail, "count": count}


def _nothing_usable(problems: list[tuple[str, UnusableError]]) -> InputError:
    name, problem = problems[0]
    if len(problems) == 1:
        return InputError(f"{name} cannot be used: {problem.detail}.", REMEDY)
    others = ", ".join(sorted({other.reason for _, other in problems[1:]}))
    return InputError(
        f"None of the {len(problems)} source files can be used; {name}: {problem.detail}.",
        f"The other files' reasons: {others}.",
    )
