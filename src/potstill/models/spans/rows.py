"""Curated rows as questions with a passage and the place of the answer in it.

In: Examples, the chunks that they are about. Out: `SpanRow`s, and the rows that are none with the
reason. Knows no tokenizer and no model.

    no_passage             the row names no chunk: there is nothing to mark
    answer_not_in_passage  its answer is not a piece of its chunk's text
    no_question            a conversation, or a row without a question of its own
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from potstill.core.files import read_records
from potstill.core.stage import Artifact
from potstill.records import Chunk, Example, Rejected

REFUSAL = "refusal"


@dataclass(frozen=True)
class SpanRow:
    """start, end: the answer's characters in the passage; None: the passage does not answer."""

    id: str
    question: str
    passage: str
    start: int | None
    end: int | None
    example: Example


def passages(ingest: Artifact, curate: Artifact | None = None) -> dict[str, Chunk]:
    """What rows may be about, by id: chunks of documents, what came with ready-made rows, and
    what curation was given besides."""
    files = [ingest.path(name) for name in ("chunks.jsonl", "contexts.jsonl")]
    files += [curate.path("contexts.jsonl")] if curate is not None else []
    return {
        chunk.id: chunk for file in files if file.exists() for chunk in read_records(file, Chunk)
    }


def span_rows(
    examples: Iterable[Example], chunks: Mapping[str, Chunk], stage: str
) -> tuple[list[SpanRow], list[Rejected]]:
    """Every row that marks a span or says that there is none; the others with their reason,
    as that stage's."""
    rows, rejected = [], []
    for example in examples:
        found = _row(example, chunks)
        if isinstance(found, SpanRow):
            rows.append(found)
        else:
            rejected.append(
                Rejected(
                    id=example.id,
                    stage=stage,
                    reason=found,
                    detail=example.question,
                    row=example.model_dump(mode="json"),
                )
            )
    return rows, rejected


def _row(example: Example, chunks: Mapping[str, Chunk]) -> SpanRow | str:
    chunk = chunks.get(example.provenance.chunk)
    if chunk is None:
        return "no_passage"
    if not example.question.strip() or example.kind == "conversation":
        return "no_question"
    place = (None, None) if example.kind == REFUSAL else place_of(example, chunk.text)
    if place is None:
        return "answer_not_in_passage"
    start, end = place
    return SpanRow(example.id, example.question, chunk.text, start, end, example)


def place_of(example: Example, passage: str) -> tuple[int, int] | None:
    """Where the taught answer stands: at the row's span if that holds it, else where the text has
    it once, whatever the white space between its words."""
    words = (example.answers or (example.turns[-1].content,))[0].split()
    if not words:
        return None
    loose = re.compile(r"\s+".join(map(re.escape, words)))
    span = example.provenance.span
    if span is not None:
        inside = loose.search(passage, span.start, span.end)
        if inside:
            return inside.span()
    found = [one.span() for one in loose.finditer(passage)]
    return found[0] if len(found) == 1 else None


def counted(rejected: Sequence[Rejected]) -> dict[str, int]:
    """Rejected rows by reason."""
    reasons: dict[str, int] = {}
    for one in rejected:
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
    return reasons
