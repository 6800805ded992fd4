"""What a recipe may say about reading documents.

In: fields. Out: a validated, immutable config. Knows no file and no library.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from potstill.core.plugins import PluginChoice
from potstill.core.stage import StageConfig
from potstill.ingest.rows_config import RowsConfig


class IngestConfig(StageConfig):
    """Which files to read, how, and how large the chunks are."""

    # The teacher's digest is part of the key (plan.py); where it lies on disk is not. What comes
    # out does not depend on how many files are read at once.
    not_in_key: ClassVar[frozenset[str]] = frozenset({"teacher", "processes"})

    sources: list[str] = Field(
        min_length=1,
        description="Files, folders or globs below the project folder, or sample:NAME. "
        "Documents: PDF, DOCX, PPTX, HTML, EPUB, Markdown, plain text, pictures. Ready-made rows: "
        "CSV, TSV, JSON, JSON Lines, Parquet, SQuAD.",
    )
    teacher: str = Field(
        "",
        description="Model reference whose tokenizer measures chunks; empty: the recipe's teacher.",
    )
    chunk_tokens: int = Field(
        2000, ge=32, le=1_000_000, description="Most tokens of a chunk, by the teacher's tokenizer."
    )
    overlap_tokens: int = Field(
        500, ge=0, description="Most tokens that a chunk repeats of the one before it."
    )
    keep_sections: bool = Field(
        True,
        description="End a chunk before a section that does not fit into it any more, if it is "
        "half full by then. If false, chunks are filled to the last sentence that fits.",
    )
    min_chunk_tokens: int = Field(
        16, ge=1, description="A document's chunks that are shorter than this are set aside."
    )
    ocr: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Read PDF pages from their picture: where there is no usable text (auto), "
        "on every page, or on none. Picture files are read by OCR unless it is never.",
    )
    ocr_engine: Literal["rapidocr", "tesseract"] = Field(
        "rapidocr",
        description="What reads pictures: RapidOCR, which comes with the ocr extra, or the "
        "program tesseract, which has to be installed.",
    )
    ocr_language: str = Field(
        "eng",
        pattern=r"^[A-Za-z_]+(\+[A-Za-z_]+)*$",
        description="The languages that tesseract looks for, such as deu or eng+fra. RapidOCR "
        "reads the alphabets that its models know, whatever this says.",
    )
    ocr_dpi: int = Field(
        200, ge=72, le=600, description="Resolution at which pages are drawn for OCR, in dots/inch."
    )
    max_pages: int = Field(
        2000, ge=1, description="A file with more pages is set aside without being read."
    )
    max_file_bytes: int = Field(
        200_000_000,
        ge=1,
        description="A larger file is set aside without being read. CSV, TSV, JSON Lines and "
        "Parquet are read row by row and have no limit.",
    )
    rows: RowsConfig = Field(
        default_factory=lambda: RowsConfig(), description="How ready-made rows are read."
    )
    readers: tuple[PluginChoice, ...] = Field(
        (),
        description="Plug-ins that read other kinds of files, such as [{name: subtitles}]; "
        "`potstill plugins` lists those that are installed.",
    )
    processes: int = Field(
        0, ge=0, le=256, description="Files that are read at once; 0: as many as the run's threads."
    )
    file_seconds: float = Field(
        7200.0, gt=0, description="A file that takes longer is set aside (timed_out)."
    )
    page_seconds: float = Field(
        180.0,
        gt=0,
        description="A file on which nothing gets done for so long, no page, chunk or row, is set "
        "aside (timed_out).",
    )
    file_memory_bytes: int = Field(
        4_000_000_000,
        ge=200_000_000,
        description="A file whose reading takes more memory is set aside (out_of_memory).",
    )

    @field_validator("sources")
    @classmethod
    def no_blank_source(cls, sources: list[str]) -> list[str]:
        """An empty text would silently mean the whole project folder."""
        if any(not source.strip() for source in sources):
            raise ValueError("a source is empty; write a path, a glob or sample:NAME")
        return sources

    @model_validator(mode="after")
    def sizes_fit(self) -> IngestConfig:
        """Chunks must move forward: the overlap stays below the chunk size."""
        if self.overlap_tokens >= self.chunk_tokens:
            raise ValueError(
                f"overlap_tokens ({self.overlap_tokens}) must be smaller than "
                f"chunk_tokens ({self.chunk_tokens})"
            )
        if self.min_chunk_tokens > self.chunk_tokens:
            raise ValueError(
                f"min_chunk_tokens ({self.min_chunk_tokens}) must not be larger than "
                f"chunk_tokens ({self.chunk_tokens})"
            )
        return self
