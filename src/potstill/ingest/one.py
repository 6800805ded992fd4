"""Read one source file into records: a document with its chunks, or ready-made rows.

In: a task (a file and its identity). Out: a folder with JSON Lines of every kind of record, there
whole or not at all; or `UnusableError`. Runs in a process of its own (`worker.py`), so nothing
here may cost memory in the size of a file of rows. Knows no other file.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from potstill.core.files import read_json, whole_folder, write_json
from potstill.ingest.chunking import TokenCounter, chunk_spans
from potstill.ingest.cleaning import assemble, vocabulary
from potstill.ingest.columns import Columns, find_columns
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import Reading, UnusableError
from potstill.ingest.examples import Row, row_of
from potstill.ingest.language import language_of
from potstill.ingest.readers import LONGEST_TITLE, check_file, read_file, unreadable
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.ingest.row_files import STREAMED, RawRow, RowFile, open_rows
from potstill.ingest.seen import SeenPages
from potstill.records import Chunk, Document, Rejected, short_id

STAGE = "ingest"
NAMES = ("documents", "chunks", "rows", "contexts", "rejected")
SUMMARY = "summary.json"
SIGN_EVERY = 200
MOST_NAMED = 20
"""Rejects of one file that are told one by one; the rest are counted. All are written."""
SHOWN = 2000
CACHE_KIB = 16384

OnSign = Callable[[int, int, str], None]
"""Called with (done, in all, unit): "page" or "row"; unit "" only says that work goes on."""


@dataclass(frozen=True)
class Task:
    """A file to read. `identity`: the digest of its content, shortened."""

    name: str
    path: Path
    identity: str


def part_folder(work: Path, task: Task) -> Path:
    """Where the records of a file are gathered; the same in a run that goes on."""
    return work / "read" / short_id("part", task.identity, task.name)


def read_one(
    task: Task,
    config: IngestConfig,
    count: TokenCounter,
    work: Path,
    pages: SeenPages,
    on_sign: OnSign,
) -> Path:
    """The folder with the file's records; at once if an earlier run has read it.

    Errors: UnusableError for a file that cannot be used, MissingExtraError, StoreError.
    """
    target = part_folder(work, task)
    if target.exists():
        return target
    kind = ROW_KINDS.get(task.path.suffix.lower())

    def counted(text: str) -> int:
        on_sign(0, 0, "")
        return count(text)

    with whole_folder(target) as folder, Part(folder, task.name) as part:
        if kind is None:
            _read_document(task, config, counted, pages, on_sign, part)
        else:
            _read_rows(task, kind, config, counted, on_sign, part)
    return target


class Part:
    """The files of one source's records, written as the records come."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.named: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._files = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Part:
        with ExitStack() as files:
            for name in NAMES:
                file = (self.folder / f"{name}.jsonl").open("w", encoding="utf-8")
                self._open[name] = files.enter_context(file)
            self._files = files.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._files.close()
        if kind is None:
            summary = {
                "counts": {name: self.counts[name] for name in NAMES},
                "reasons": dict(self.reasons),
                "named": self.named,
                "notes": self.notes,
            }
            write_json(self.folder / SUMMARY, summary)

    def write(self, name: str, record: BaseModel) -> None:
        """One record to the end of its file."""
        self._open[name].write(record.model_dump_json() + "\n")
        self.counts[name] += 1

    def reject(self, identity: str, problem: UnusableError, where: str, **row: Any) -> None:
        """Something that does not go on; `where`: within the file, for people."""
        reason, detail = problem.reason, problem.detail
        record = Rejected(id=identity, stage=STAGE, reason=reason, detail=detail, row=row)
        self.write("rejected", record)
        self.reasons[reason] += 1
        if len(self.named) < MOST_NAMED:
            place = f"{self.source}, {where}" if where else self.source
            event = {"id": identity, "reason": reason, "detail": f"{place}: {detail}"}
            self.named.append(event)


def summary_of(folder: Path) -> dict[str, Any]:
    """What `Part` counted."""
    found: dict[str, Any] = read_json(folder / SUMMARY)
    return found


# --- documents ------------------------------------------------------------------------------------


def _read_document(
    task: Task,
    config: IngestConfig,
    count: TokenCounter,
    pages: SeenPages,
    on_sign: OnSign,
    part: Part,
) -> None:
    pages.identity = task.identity
    reading = read_file(task.path, config, pages.see, lambda done, of: on_sign(done, of, "page"))
    document = _document(task, reading)
    chunks = chunks_of(document, config, count)
    if all(chunk.tokens < config.min_chunk_tokens for chunk in chunks):
        raise UnusableError(
            "too_short", f"the file holds only {count(document.text)} tokens of text"
        )
    part.notes += reading.notes
    part.write("documents", document)
    for chunk in chunks:
        if chunk.tokens < config.min_chunk_tokens:
            detail = f"{chunk.tokens} tokens; ingest.min_chunk_tokens asks for "
            problem = UnusableError("short_chunk", f"{detail}{config.min_chunk_tokens}")
            part.reject(chunk.id, problem, "", **chunk.model_dump(mode="json"))
        else:
            part.write("chunks", chunk)
    for page, trouble in reading.lost_pages:
        identity = short_id("page", document.id, str(page))
        part.reject(identity, trouble, f"page {page}", source=task.name, page=page)


def _document(task: Task, reading: Reading) -> Document:
    blocks = [block for page in reading.pages for block in page.blocks]
    words = vocabulary(line for block in blocks for line in block.split("\n"))
    text, pages = assemble(reading.pages, words)
    first = blocks[0].split("\n")[0].strip("#* ")
    title = reading.title or (first if len(first) < LONGEST_TITLE else Path(task.name).stem)
    return Document(
        id=task.identity,
        source=task.name,
        title=title,
        language=language_of(text),
        text=text,
        pages=pages,
    )


def chunks_of(document: Document, config: IngestConfig, count: TokenCounter) -> list[Chunk]:
    """The document's chunks in order; each knows its characters and its pages."""
    spans = chunk_spans(
        document.text, count, config.chunk_tokens, config.overlap_tokens, config.keep_sections
    )
    chunks = []
    for start, end in spans:
        text = document.text[start:end]
        chunks.append(
            Chunk(
                id=short_id(document.id, str(start), str(end)),
                document=document.id,
                source=document.source,
                start=start,
                end=end,
                pages=tuple(
                    page.number for page in document.pages if page.start < end and start < page.end
                ),
                tokens=count(text),
                text=text,
            )
        )
    return chunks


# --- ready-made rows ------------------------------------------------------------------------------


def _read_rows(
    task: Task,
    kind: str,
    config: IngestConfig,
    count: TokenCounter,
    on_sign: OnSign,
    part: Part,
) -> None:
    """Rows and their passages, each passage once."""
    check_file(
        task.path,
        "a Parquet file" if kind == "Parquet" else "text",
        None if kind in STREAMED else config.max_file_bytes,
    )
    with unreadable():
        file = open_rows(task.path, kind)
    with closing(file), _Once() as passages, _Once() as ids:
        for number, (raw, row) in enumerate(_usable(task, file, config, part)):
            if number % SIGN_EVERY == 0:
                on_sign(file.position(), file.size, "row")
            if row is None:
                continue
            example = row.example
            if config.rows.columns.id and not ids.new(example.id):
                problem = UnusableError("duplicate_id", "an earlier row of the file has its id")
                _reject(task, part, raw, problem)
                continue
            if row.passage and passages.new(example.provenance.chunk):
                part.write("contexts", _context(task, example.provenance, row.passage, count))
            part.write("rows", example)
    if not part.counts["rows"]:
        if not part.named:
            raise UnusableError("no_rows", "the file holds no row")
        part.notes.append(f"holds no row that can be used; the first: {part.named[0]['detail']}")


def _usable(
    task: Task, file: RowFile, config: IngestConfig, part: Part
) -> Iterator[tuple[RawRow, Row | None]]:
    """Each row with what became of it; None for one that was set aside."""
    rows = config.rows
    fixed = find_columns(file.columns, rows.columns) if file.columns else None
    known: dict[tuple[str, ...], Columns] = {}
    for raw in file.rows:
        try:
            columns = fixed
            if columns is None and raw.problem is None:
                keys = tuple(raw.fields)
                columns = known.get(keys)
                if columns is None:
                    columns = find_columns(keys, rows.columns)
                    if len(known) < MOST_SHAPES:
                        known[keys] = columns
            yield raw, row_of(raw, columns or Columns(), rows, task.identity)
        except UnusableError as problem:
            _reject(task, part, raw, problem)
            yield raw, None


MOST_SHAPES = 1000


def _reject(task: Task, part: Part, raw: RawRow, problem: UnusableError) -> None:
    identity = short_id("row", task.identity, str(raw.number))
    fields = {str(name): _shown(value) for name, value in raw.fields.items()}
    part.reject(
        identity, problem, f"row {raw.number}", source=task.name, number=raw.number, fields=fields
    )


def _shown(value: Any) -> Any:
    """A cell as JSON can hold it, not longer than a person would read."""
    if isinstance(value, str):
        return value[:SHOWN].encode("utf-8", errors="replace").decode("utf-8")
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        words = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, RecursionError):
        words = f"a {type(value).__name__}"
    return words[:SHOWN]


def _context(task: Task, provenance: Any, passage: str, count: TokenCounter) -> Chunk:
    return Chunk(
        id=provenance.chunk,
        document=provenance.document,
        source=task.name,
        start=0,
        end=len(passage),
        tokens=count(passage),
        text=passage,
    )


class _Once:
    """Which ids were seen, on disk: a file may have more passages than the memory holds ids."""

    def __init__(self) -> None:
        self._last = ""
        self._table = sqlite3.connect("")  # a temporary file that goes with the connection

    def __enter__(self) -> _Once:
        self._table.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._table.execute("CREATE TABLE seen (id INTEGER PRIMARY KEY)")
        return self

    def __exit__(self, *problem: object) -> None:
        self._table.close()

    def new(self, identity: str) -> bool:
        """Whether this id (16 hex digits) comes for the first time."""
        if identity == self._last:  # questions about one passage mostly stand together
            return False
        self._last = identity
        key = int(identity, 16) - (1 << 63)
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1
