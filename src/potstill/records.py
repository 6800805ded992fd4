"""The records that travel between the stages: plain, validated, torch-free.

In: nothing but fields. Out: JSON Lines, one record a line, readable by Hugging Face `datasets`.
This file knows neither models nor files; `core/files.py` reads and writes it.

    Document --chunking--> Chunk --teacher--> Example --curation--> kept | Rejected
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: immutable, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Record):
    """One page of a document, as a half-open character range of the document's text."""

    number: int = Field(ge=1, description="Page number as a reader counts it, from 1.")
    start: int = Field(ge=0, description="First character of the page in the document's text.")
    end: int = Field(ge=0, description="One past the last character of the page.")
    method: Literal["text", "ocr"] = Field("text", description="Where the text came from.")


class Document(Record):
    """The text of one source file."""

    id: str = Field(description="Stable name: the digest of the source file, shortened.")
    source: str = Field(description="The file's path as the recipe names it.")
    title: str = ""
    language: str = Field("", description="ISO 639-1 code of its language; empty: not known.")
    text: str = Field(min_length=1)
    pages: tuple[Page, ...] = ()


class Chunk(Record):
    """A piece of a document, small enough for the teacher to read at once."""

    id: str
    document: str = Field(description="Id of the document it was cut from.")
    source: str = Field(description="The document's file, for people.")
    start: int = Field(ge=0, description="First character in the document's text.")
    end: int = Field(gt=0, description="One past the last character.")
    pages: tuple[int, ...] = Field((), description="Page numbers that the chunk touches.")
    tokens: int = Field(ge=0, description="Length by the teacher's tokenizer.")
    text: str = Field(min_length=1)


class Turn(Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Span(Record):
    """A half-open character range of a chunk's text."""

    start: int = Field(ge=0)
    end: int = Field(gt=0)


class Provenance(Record):
    """Where an example comes from; enough to walk back to the sentence in the document."""

    document: str
    chunk: str = Field(description="Id of its chunk; empty: a ready-made row without a passage.")
    also: tuple[str, ...] = Field((), description="Ids of other chunks that the row shows.")
    span: Span | None = Field(None, description="Where the answer stands in the chunk, if it does.")
    teacher: str = Field("", description="Model reference of the teacher that wrote it.")
    prompt: str = Field("", description="Name and version of the prompt template.")
    parent: str | None = Field(None, description="Id of the row this one is a variant of.")
    variant: str = Field("", description="How it varies its parent: formal, casual, typo, ...")


class Example(Record):
    """A training or test row: a conversation whose last turn is what the student learns to say."""

    id: str
    kind: str = Field(
        "qa",
        description="What sort of row: qa, extractive, conversation, multiple_choice, "
        "fill_in_the_blank, summary, refusal.",
    )
    turns: tuple[Turn, ...] = Field(min_length=2)
    question: str = ""
    reasoning: str = Field("", description="The teacher's reason for the answer.")
    answers: tuple[str, ...] = Field((), description="Gold answers; the first is the one taught.")
    options: tuple[str, ...] = Field((), description="The choices of a multiple-choice question.")
    label: str = Field("", description="Its class, where the data has one; splits keep shares.")
    provenance: Provenance


class Verdict(Record):
    """What curation decided about a row, and why."""

    keep: bool
    reason: str = Field("", description="A short stable word for counting, such as near_duplicate.")
    detail: str = Field("", description="What a person needs to understand this one case.")


class Rejected(Record):
    """A row, reply, page or file that did not go on, kept with its reason."""

    id: str
    stage: str
    reason: str = Field(description="A short stable word for counting, such as empty_answer.")
    detail: str = ""
    row: dict[str, Any] = Field(default_factory=dict, description="The rejected thing itself.")


ALL_RECORDS = (Document, Chunk, Example, Rejected)


def schema_digest() -> str:
    """Hash of the records' JSON Schemas; part of every stage key, so old shapes are not reused."""
    schemas = [record.model_json_schema() for record in ALL_RECORDS]
    return hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()


def short_id(*parts: str) -> str:
    """A stable 16-character id from any number of strings; the parts' borders count."""
    joined = json.dumps(parts, ensure_ascii=False).encode()
    return hashlib.sha256(joined).hexdigest()[:16]
