"""What a recipe may say about reading documents.

In: fields. Out: a validated, immutable config. Knows no file and no library.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from potstill.core.stage import StageConfig


class IngestConfig(StageConfig):
    """Which files to read, how, and how large the chunks are."""

    # The teacher's digest is part of the key (plan.py); where it lies on disk is not.
    not_in_key: ClassVar[frozenset[str]] = frozenset({"teacher"})

    sources: list[str] = Field(
        min_length=1,
        description="Files, folders or globs below the project folder, or sample:NAME. "
        "PDF, DOCX, Markdown and plain text are read.",
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
    min_chunk_tokens: int = Field(
        16, ge=1, description="A document's chunks that are shorter than this are set aside."
    )
    ocr: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Read PDF pages from their picture: where there is no usable text (auto), "
        "on every page, or on none.",
    )
    ocr_dpi: int = Field(
        200, ge=72, le=600, description="Resolution at which pages are drawn for OCR, in dots/inch."
    )
    max_pages: int = Field(
        2000, ge=1, description="A file with more pages is set aside without being read."
    )
    max_file_bytes: int = Field(
        200_000_000, ge=1, description="A larger file is set aside without being read."
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
