"""The ingest stage: every source file becomes a Document and its Chunks, or a reason why not.

In: an IngestConfig. Out: documents.jsonl, chunks.jsonl, rejected.jsonl in the draft's data.
One document is in memory at a time. OCR is the slow part, so each page that was recognised is
kept in the draft's work folder, and a killed run does not read it twice. A file that fails does
not stop the others; only when no file is left does the stage fail.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from potstill.core.extras import require
from potstill.core.files import disk_errors, file_digest, read_json, write_atomic
from potstill.core.stage import Artifact, Context, Draft
from potstill.errors import InputError
from potstill.ingest.chunking import TokenCounter, chunk_spans
from potstill.ingest.cleaning import assemble, vocabulary
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import Fragment, OnPage, Reading, UnusableError
from potstill.ingest.readers import LONGEST_TITLE, read_file
from potstill.ingest.sources import SourceFile, find_sources
from potstill.records import Chunk, Document, Rejected, short_id

STAGE = "ingest"
POINTS_PER_INCH = 72.0
REMEDY = "Replace the file, or name other documents in ingest.sources."
LONGEST_SIDE = 4000  # pixels; a poster is drawn at a lower resolution


def run(
    config: IngestConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Run the stage with the teacher's tokenizer as the measure of chunks."""
    from potstill.models.load import load_tokenizer

    tokenizer = load_tokenizer(config.teacher)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    ingest(config, draft, context, count)


def ingest(config: IngestConfig, draft: Draft, context: Context, count: TokenCounter) -> None:
    """Read every source of `config`; `count` gives the number of tokens of a text.

    Errors: InputError when a source is missing or no file can be used.
    """
    files = find_sources(config.sources, context.project)
    pages = SeenPages(config, draft.work / "ocr", context.threads)
    seen: dict[str, str] = {}
    problems: list[tuple[str, UnusableError]] = []
    for name in ("rows", "contexts"):
        (draft.data / f"{name}.jsonl").touch()
    with Results(draft, context) as results:
        for number, file in enumerate(files):
            on_page = partial(_progress, context, file.name, number, len(files))
            try:
                document, chunks, lost = _read(config, count, file, seen, pages, on_page)
            except UnusableError as problem:
                problems.append((file.name, problem))
                results.reject(short_id("file", file.name), problem, source=file.name)
            else:
                results.write(document, chunks, config.min_chunk_tokens)
                for page, trouble in lost:
                    identity = short_id("page", document.id, str(page))
                    results.reject(identity, trouble, source=file.name, page=page)
            context.events.progress(number + 1, len(files), "files", step=file.name)
        if not results.documents:
            raise _nothing_usable(problems)
        context.events.metric("documents", results.documents)
        context.events.metric("chunks", results.chunks)


def _progress(context: Context, name: str, number: int, of: int, page: int, pages: int) -> None:
    """A page is done: file `number` of `of` is that much further."""
    done = number + page / (pages + 1)
    context.events.progress(done, of, "files", step=name, page=page, pages=pages)


class Results:
    """The stage's three files, written as the records come."""

    def __init__(self, draft: Draft, context: Context) -> None:
        self.draft, self.events = draft, context.events
        self.documents = self.chunks = 0
        self._files = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Results:
        with ExitStack() as files:
            for name in ("documents", "chunks", "rejected"):
                path = self.draft.data / f"{name}.jsonl"
                with disk_errors(path, "write"):
                    self._open[name] = files.enter_context(path.open("w", encoding="utf-8"))
            self._files = files.pop_all()
        return self

    def __exit__(self, *problem: object) -> None:
        with disk_errors(self.draft.data, "write"), self._files:
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())

    def write(self, document: Document, chunks: list[Chunk], least: int) -> None:
        """A document and its chunks; a chunk below `least` tokens is set aside with its reason."""
        self._line("documents", document)
        self.documents += 1
        for chunk in chunks:
            if chunk.tokens < least:
                detail = f"{chunk.tokens} tokens; ingest.min_chunk_tokens asks for {least}"
                problem = UnusableError("short_chunk", detail)
                self.reject(chunk.id, problem, **chunk.model_dump(mode="json"))
            else:
                self._line("chunks", chunk)
                self.chunks += 1

    def reject(self, identity: str, problem: UnusableError, **row: Any) -> None:
        """Something that does not go on, in the file and in the run's diary."""
        self._line(
            "rejected",
            Rejected(
                id=identity, stage=STAGE, reason=problem.reason, detail=problem.detail, row=row
            ),
        )
        where = row["source"] + (f", page {row['page']}" if "page" in row else "")
        self.events.emit(
            "rejected", id=identity, reason=problem.reason, detail=f"{where}: {problem.detail}"
        )

    def _line(self, name: str, record: BaseModel) -> None:
        with disk_errors(self.draft.data / f"{name}.jsonl", "write"):
            self._open[name].write(record.model_dump_json() + "\n")


def _read(
    config: IngestConfig,
    count: TokenCounter,
    file: SourceFile,
    seen: dict[str, str],
    pages: SeenPages,
    on_page: OnPage,
) -> tuple[Document, list[Chunk], list[tuple[int, UnusableError]]]:
    """One file's document and chunks. `seen`: digest -> name of the files before it."""
    with unreadable():
        oversize = file.path.stat().st_size > config.max_file_bytes
        identity = "" if oversize else file_digest(file.path)[:16]
    if identity and identity in seen:
        raise UnusableError("duplicate_file", f"the same content as {seen[identity]}")
    pages.identity = identity
    reading = read_file(file.path, config, pages.see, on_page)
    document = _document(identity, file.name, reading)
    chunks = chunks_of(document, config, count)
    if all(chunk.tokens < config.min_chunk_tokens for chunk in chunks):
        raise UnusableError(
            "too_short", f"the file holds only {count(document.text)} tokens of text"
        )
    seen[identity] = file.name
    return document, chunks, reading.lost_pages


@contextmanager
def unreadable() -> Iterator[None]:
    """A file that the system will not let us read is set aside like any other bad file."""
    try:
        yield
    except OSError as error:
        raise UnusableError("unreadable", f"the file cannot be read: {error.strerror}") from error


def _document(identity: str, source: str, reading: Reading) -> Document:
    blocks = [block for page in reading.pages for block in page.blocks]
    words = vocabulary(line for block in blocks for line in block.split("\n"))
    text, pages = assemble(reading.pages, words)
    first = blocks[0].split("\n")[0].strip("#* ")
    title = reading.title or (first if len(first) < LONGEST_TITLE else Path(source).stem)
    return Document(id=identity, source=source, title=title, text=text, pages=pages)


def chunks_of(document: Document, config: IngestConfig, count: TokenCounter) -> list[Chunk]:
    """The document's chunks in order; each knows its characters and its pages."""
    spans = chunk_spans(document.text, count, config.chunk_tokens, config.overlap_tokens)
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


class SeenPages:
    """OCR of pages, each remembered in `folder` as soon as it is done.

    `identity` names the file that is being read. The recogniser is loaded at the first page that
    needs it, and serves all files.
    """

    def __init__(self, config: IngestConfig, folder: Path, threads: int) -> None:
        self.config, self.folder, self.threads = config, folder, threads
        self.identity = ""
        self._recogniser: Any = None

    def see(self, page: Any, number: int) -> list[Fragment]:
        """The page's text lines. `page`: a pypdfium2 page. Errors: MissingExtraError."""
        memory = self.folder / f"{self.identity}-{number}.json"
        if memory.exists():
            return [Fragment(*values) for values in read_json(memory)]
        if self._recogniser is None:
            require("numpy", "ocr", "Reading scanned pages")
            from potstill.ingest.ocr import Recogniser

            self._recogniser = Recogniser(self.threads)
        dpi = min(float(self.config.ocr_dpi), LONGEST_SIDE * POINTS_PER_INCH / max(page.get_size()))
        image = page.render(scale=dpi / POINTS_PER_INCH, maybe_alpha=False).to_numpy()
        fragments: list[Fragment] = self._recogniser.fragments(image, dpi)
        rows = [astuple(fragment) for fragment in fragments]
        write_atomic(memory, json.dumps(rows, ensure_ascii=False))
        return fragments


def _nothing_usable(problems: list[tuple[str, UnusableError]]) -> InputError:
    name, problem = problems[0]
    if len(problems) == 1:
        return InputError(f"{name} cannot be used: {problem.detail}.", REMEDY)
    others = ", ".join(sorted({other.reason for _, other in problems[1:]}))
    return InputError(
        f"None of the {len(problems)} source files can be used; {name}: {problem.detail}.",
        f"The other files' reasons: {others}.",
    )
