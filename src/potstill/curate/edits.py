"""What a person decided about rows: rejected, accepted, edited, or written by hand.

In: a file of decisions in the project, JSON Lines of `Edit`; rows that are dealt to their splits.
Out: the rows as they were decided, and how many of each. Knows no run and no page.

    {"id": "3f9a…", "action": "reject", "fields": {"note": "two right answers"}}
    {"id": "77c0…", "action": "edit", "fields": {"answer": "nine hours"}}
    {"id": "hand-1", "action": "add", "fields": {"question": "…?", "answer": "…", "chunk": "d1c4…"}}

A row that a person has read is not judged by its form, and may say what another row of its split
says. What protects the measurement holds for it as for every row: it keeps its split, and is
rejected where it repeats a row of a more protected split or of an evaluation set. Decisions change
no other row's split. Variants of an edited row vary what it said before, so they are set aside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from potstill.core.files import read_records
from potstill.curate import personal
from potstill.curate.config import CurateConfig
from potstill.curate.filters import reject
from potstill.curate.material import Material, Row
from potstill.curate.rewriting import asking_turn, with_question, with_turn
from potstill.curate.split import MOST_PROTECTED_FIRST, Split
from potstill.errors import InputError
from potstill.records import Chunk, Example, Provenance, Record, Span, Turn, Verdict

BY_HAND = "by-hand@1"
"""Provenance of a row that was written by hand, where others have their prompt."""
LONGEST = 20_000
Action = Literal["accept", "reject", "edit", "add"]


class Fields(Record):
    """What an edit says; what is empty stays as it was."""

    question: str = Field("", max_length=LONGEST)
    answer: str = Field("", max_length=LONGEST)
    chunk: str = Field("", max_length=200, description="Passage of an added row; empty: none.")
    note: str = Field("", max_length=LONGEST, description="Why, for people.")


class Edit(Record):
    """One decision about one row."""

    id: str = Field(min_length=1, max_length=200)
    action: Action
    fields: Fields = Fields()

    @model_validator(mode="after")
    def _says_enough(self) -> Edit:
        question, answer = self.fields.question.strip(), self.fields.answer.strip()
        if self.action == "edit" and not (question or answer):
            raise ValueError("an edit needs a question or an answer")
        if self.action == "add" and not (question and answer):
            raise ValueError("a row needs a question and an answer")
        return self


def edits_file(config: CurateConfig, project: Path) -> Path:
    """Where the decisions are. Errors: InputError for what is no file below the project."""
    path = (project / config.edits).resolve()
    if not path.is_relative_to(project.resolve()) or not path.is_file():
        raise InputError(
            f"curate.edits names {config.edits!r}, which is no file below {project}.",
            "Restore it, take the field out of the recipe, or decide anew: potstill rows RUN",
        )
    return path


def read_edits(path: Path) -> dict[str, Edit]:
    """The decisions by row; of several about one row the last. None if there is no file.

    Errors: InputError for a line that is no decision.
    """
    return {one.id: one for one in read_records(path, Edit)} if path.exists() else {}


def edited(example: Example, fields: Fields, passage: str | None) -> Example | None:
    """The row with another question, another answer, or both; None if its question stands in no
    turn, so that it cannot be changed. passage: where the answer's new place is looked for."""
    made: Example | None = example
    question, answer = fields.question.strip(), fields.answer.strip()
    if question and question != example.question:
        made = with_question(example, question)
    if made is None or not answer or answer == (example.answers or ("",))[0]:
        return made
    last = made.turns[-1].content
    before, found, after = last.rpartition(example.answers[0]) if example.answers else ("", "", "")
    origin = made.provenance.model_copy(update={"span": place_of(answer, passage or "")})
    said = before + answer + after if found else answer
    return with_turn(made, len(made.turns) - 1, said, answers=(answer,), provenance=origin)


def place_of(answer: str, passage: str) -> Span | None:
    """Where the answer first stands in the passage as words of their own: 12 is not in 1250."""
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage)
    return Span(start=found.start(), end=found.end()) if found else None


def written(edit: Edit, chunks: Mapping[str, Chunk], examples: Sequence[Example]) -> Example | None:
    """The row of an `add`, asked in the words in which the other rows are asked.

    None: it has a passage, and no row shows one that it could be laid out like.
    """
    question, answer = edit.fields.question.strip(), edit.fields.answer.strip()
    chunk = chunks.get(edit.fields.chunk)
    like = _like(chunk is not None, chunks, examples)
    turns: tuple[Turn, ...] = (Turn(role="user", content=question),)
    kind = "qa"
    if chunk is not None:
        if like is None:
            return None
        place = asking_turn(like)
        assert place is not None  # `_like` finds no other
        shown = like.turns[place].content.replace(chunks[like.provenance.chunk].text, chunk.text, 1)
        before, _, after = shown.rpartition(like.question)
        turns = (*_system(like), Turn(role="user", content=before + question + after))
        kind = "extractive" if like.kind == "extractive" else kind
    elif like is not None:
        turns = (*_system(like), *turns)
    return Example(
        id=edit.id,
        kind=kind,
        turns=(*turns, Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        provenance=Provenance(
            document=chunk.document if chunk else "by hand",
            chunk=chunk.id if chunk else "",
            span=place_of(answer, chunk.text) if chunk else None,
            prompt=BY_HAND,
        ),
    )


def _system(like: Example) -> tuple[Turn, ...]:
    return tuple(turn for turn in like.turns[:1] if turn.role == "system")


def _like(shows: bool, chunks: Mapping[str, Chunk], examples: Sequence[Example]) -> Example | None:
    """A row of one question that shows its passage, or one that shows none."""
    for one in examples:
        place, chunk = asking_turn(one), chunks.get(one.provenance.chunk)
        if place is None or one.options or sum(turn.role == "user" for turn in one.turns) != 1:
            continue
        if shows == (chunk is not None and chunk.text in one.turns[place].content):
            return one
    return None


@dataclass(frozen=True)
class Dealt:
    """Of the run's own passages the split of each, and those whose text reaches into a passage of
    a more protected split."""

    of_chunk: Mapping[str, Split]
    leaks: Mapping[str, str]


def apply_edits(
    rows: Sequence[Row],
    dealt: Dealt,
    examples: Sequence[Example],
    material: Material,
    config: CurateConfig,
) -> tuple[list[Row], Counter[str]]:
    """The rows as they were decided, the most protected first, and how many accept, reject, edit,
    add, unknown (no row has that id), unchangeable (a question that stands in no turn).

    rows: dealt already. examples: before personal data was masked. An added row goes where its
    passage went, else where its document went, without either to training.
    """
    edits = material.edits
    chunks = {chunk.id: chunk for chunk in (*material.contexts, *material.chunks)}
    counts: Counter[str] = Counter()
    found = [_decided(row, edits.get(row.example.id), chunks, counts) for row in rows]
    changed = {
        row.example.id
        for row, before in zip(found, rows, strict=True)
        if row.example != before.example
    }
    for row in found:
        parent = row.example.provenance.parent
        if parent is not None and not row.by_hand and {row.root, parent} & changed:
            row.verdict = reject("parent_edited", f"row {row.root} was edited by hand")
    split_of: dict[str, Split] = {}
    for row in reversed(found):  # the most protected are written last
        origin = row.example.provenance
        split_of |= {f"document {origin.document}": row.split, origin.chunk: row.split}
    split_of |= dealt.of_chunk
    known = {row.example.id for row in found}
    for edit in edits.values():
        if edit.action != "add":
            counts["unknown"] += edit.id not in known
            continue
        counts["add"] += 1
        row = _added(edit, chunks, examples, dealt, config)
        origin = row.example.provenance
        if origin.chunk:
            row.split = split_of.get(
                origin.chunk, split_of.get(f"document {origin.document}", "train")
            )
        found.append(row)
    rank = {split: place for place, split in enumerate(MOST_PROTECTED_FIRST)}
    found.sort(key=lambda row: (rank[row.split], row.example.provenance.parent is not None))
    return found, +counts


def _decided(row: Row, edit: Edit | None, chunks: Mapping[str, Chunk], counts: Counter[str]) -> Row:
    if edit is None or edit.action == "add":
        return row
    if edit.action == "reject":
        counts["reject"] += 1
        verdict = reject("rejected_by_hand", edit.fields.note)
        return replace(row, by_hand=True, verdict=verdict)
    if edit.action == "accept":
        counts["accept"] += 1
        return replace(row, by_hand=True)
    chunk = chunks.get(row.example.provenance.chunk)
    made = edited(row.example, edit.fields, chunk.text if chunk else None)
    counts["unchangeable" if made is None else "edit"] += 1
    return row if made is None else replace(row, by_hand=True, example=made)


def _added(
    edit: Edit,
    chunks: Mapping[str, Chunk],
    examples: Sequence[Example],
    dealt: Dealt,
    config: CurateConfig,
) -> Row:
    chunk, verdict = edit.fields.chunk, Verdict(keep=True)
    made = written(edit, chunks, examples)
    if chunk and chunk not in chunks:
        verdict = reject("no_chunk", chunk)
    elif chunk in dealt.leaks:
        verdict = reject("overlaps_other_split", f"chunk {dealt.leaks[chunk]}")
    elif made is None:
        verdict = reject("no_wording", "no row of the run shows its passage")
    if made is None:
        bare = edit.model_copy(update={"fields": edit.fields.model_copy(update={"chunk": ""})})
        made = written(bare, chunks, ())
    assert made is not None  # a row without a passage needs no other row
    if config.personal_data == "mask":
        made = personal.masked_row(made)
    return Row(made, made.id, made.id, "train", verdict, by_hand=True)
