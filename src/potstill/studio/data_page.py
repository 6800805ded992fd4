"""Data: the rows that a run trains and tests on, those that were set aside, and where each is from.

In: a run's finished stages. Out: pages of rows, found by split, kind or reason, and words; one row
with its passage, the sentence that holds the answer marked, in a PDF also on its page, and the
forms by which it is decided about (`decisions.py`). A result in the store never changes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from potstill.core.files import file_digest
from potstill.core.stage import Artifact
from potstill.curate.page import REASONS
from potstill.errors import InputError, StoreError, UsageError
from potstill.generate.grounding import sentences
from potstill.ingest.marked_page import Wanted, marked_page
from potstill.ingest.sources import find_sources
from potstill.studio import decisions
from potstill.studio.pages import fragment, page
from potstill.studio.rows import KIND, REASON, RowFile
from potstill.studio.runs import RunView, find_run
from potstill.studio.session import Studio
from potstill.studio.set_aside import KNOWN, TITLES, as_row, named

A_PAGE = 50
LONGEST_SHOWN = 300
PLAIN_ROW: dict[str, Any] = {"question": "", "options": (), "reasoning": "", "turns": ()}
"""What a rejected thing, which may be any part of a row, lacks."""
PLACES: tuple[tuple[str, str, str, str, re.Pattern[bytes]], ...] = (
    ("train", "train", "curate", "train.jsonl", KIND),
    ("validation", "validation", "curate", "validation.jsonl", KIND),
    ("test", "test", "curate", "test.jsonl", KIND),
    ("curate", "rejected", "curate", "rejected.jsonl", REASON),
    ("generate", "rejected", "generate", "rejected.jsonl", REASON),
    ("ingest", "rejected", "ingest", "rejected.jsonl", REASON),
)
"""(part, split, stage, file, what rows are counted by)."""


@dataclass(frozen=True)
class Part:
    """Rows of one file."""

    name: str
    split: str
    stage: str
    rows: RowFile


def routes(studio: Studio) -> APIRouter:
    """The routes of the page."""
    router = APIRouter()

    @router.get("/runs/{name}/data")
    def data(name: str, request: Request) -> Response:
        view, query = find_run(studio, name), request.query_params
        parts, missing = parts_of(studio, view)
        about = decisions.decided(view)
        found = _found(parts, query.get("split", ""), query.get("word", ""), query.get("q", ""))
        number = query.get("page", "1")
        last = max(1, -(-len(found) // A_PAGE))
        at = min(max(1, int(number) if number.isdecimal() and len(number) < 9 else 1), last)
        chosen = found[(at - 1) * A_PAGE : at * A_PAGE]
        return page(
            request,
            studio,
            "data.html.j2",
            title=f"{name}: data",
            here="runs",
            tab="data",
            view=view,
            splits=_splits(parts),
            words=_words(parts, query.get("split", "")),
            query={key: query.get(key, "") for key in ("split", "word", "q")},
            rows=_shown(chosen),
            said=decisions.WORDS,
            **about,
            found=len(found),
            total=sum(len(part.rows) for part in parts),
            at=at,
            last=last,
            missing=missing,
            reasons=REASONS,
        )

    @router.get("/runs/{name}/data/{part}/{number}")
    def row(name: str, part: str, number: int) -> Response:
        view, found, shown = _row_of(studio, name, part, number)
        return HTMLResponse(_detail(studio, view, found, shown, number))

    @router.get("/runs/{name}/data/{part}/{number}/page")
    def sheet(name: str, part: str, number: int, request: Request) -> Response:
        """The page of the PDF that the row is about, its sentence and answer marked."""
        view, found, shown = _row_of(studio, name, part, number)
        _, origin, answers = _inner(found, shown)
        chunk = _chunk(studio, view, str(origin.get("chunk") or ""))
        file = sheet_of(studio, chunk)
        if chunk is None or file is None:
            raise UsageError("This row is about no page that can be drawn.")
        if file_digest(file)[: len(chunk["document"])] != chunk["document"]:
            raise UsageError(f"{chunk['source']} has changed since it was read.")
        pieces = marked(str(chunk["text"]), origin.get("span"), answers)
        wanted = Wanted(
            str(file),
            tuple(chunk["pages"]),
            "".join(text for how, text in pieces if how != "plain"),
            "".join(text for how, text in pieces if how == "answer"),
            request.query_params.get("whole") == "1",
        )
        return Response(marked_page(wanted), media_type="image/png")

    return router


def _row_of(
    studio: Studio, name: str, part: str, number: int
) -> tuple[RunView, Part, dict[str, Any]]:
    """A row by its place. Errors: UsageError if it is not there."""
    view = find_run(studio, name)
    parts, _ = parts_of(studio, view)
    found = next((one for one in parts if one.name == part), None)
    if found is None or not 0 <= number < len(found.rows):
        raise UsageError("There is no such row.", "The run may have gone on; reload the page.")
    _, shown = next(found.rows.lines([number]))
    return view, found, shown


def sheet_of(studio: Studio, chunk: dict[str, Any] | None) -> Path | None:
    """The PDF that a chunk was cut from, if its pages can be drawn here."""
    if chunk is None or not chunk["pages"] or not str(chunk["source"]).lower().endswith(".pdf"):
        return None
    if any(find_spec(module) is None for module in ("pypdfium2", "PIL")):
        return None
    try:
        (file,) = find_sources([chunk["source"]], studio.project)
    except (InputError, ValueError):
        return None
    return file.path


def parts_of(studio: Studio, view: RunView) -> tuple[list[Part], str]:
    """The files of rows that there are, and why the training rows are not among them, if they are
    not."""
    parts: list[Part] = []
    artifacts: dict[str, Artifact | None] = {}
    missing = ""
    for name, split, stage, file, counted_by in PLACES:
        if stage not in artifacts:
            artifacts[stage], problem = _artifact(view, stage)
            missing = missing or problem * (stage == "curate")
        artifact = artifacts[stage]
        if artifact is not None and artifact.path(file).is_file():
            opened = studio.rows.open(artifact.path(file), counted_by)
            if len(opened):
                parts.append(Part(name, split, stage, opened))
    return parts, missing


def _artifact(view: RunView, stage: str) -> tuple[Artifact | None, str]:
    try:
        return view.run.artifact(stage), ""
    except (StoreError, OSError, LookupError) as error:
        if isinstance(error, StoreError) and "gone" in error.message:
            return None, str(error)
        if view.failure:
            return (
                None,
                "The run failed before its rows were sorted. Its page says why, and what to do.",
            )
        return None, "Rows are shown as soon as the stage curate has sorted them."


def _splits(parts: list[Part]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.split] += len(part.rows)
    return counts


def _words(parts: list[Part], split: str) -> list[tuple[str, int]]:
    """Kinds and reasons of the chosen split, the most frequent first."""
    counts: Counter[str] = Counter()
    for part in parts:
        if split in ("", part.split):
            counts += part.rows.counts
    return [(word, count) for word, count in counts.most_common() if word]


def _found(parts: list[Part], split: str, word: str, text: str) -> list[tuple[Part, int]]:
    return [
        (part, number)
        for part in parts
        if split in ("", part.split)
        for number in part.rows.matching(word, text[:LONGEST_SHOWN])
    ]


def _shown(chosen: list[tuple[Part, int]]) -> list[dict[str, Any]]:
    by_part: dict[str, list[int]] = {}
    parts = {part.name: part for part, _ in chosen}
    for part, number in chosen:
        by_part.setdefault(part.name, []).append(number)
    rows = {
        (name, number): row
        for name, numbers in by_part.items()
        for number, row in parts[name].rows.lines(numbers)
    }
    return [_line(part, number, rows[part.name, number]) for part, number in chosen]


def _line(part: Part, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """What a list says of a row."""
    rejected = part.split == "rejected"
    inner, _, answers = _inner(part, row)
    question = named(inner) or str(row.get("id", ""))
    answers = answers or [str(row.get("detail") or "")]
    return {
        "id": str(row.get("id", "")),
        "part": part.name,
        "number": number,
        "split": part.split,
        "stage": part.stage,
        "question": question[:LONGEST_SHOWN],
        "answer": " / ".join(answers)[:LONGEST_SHOWN],
        "reason": str(row.get("reason", "")) if rejected else "",
        "kind": "" if rejected else str(row.get("kind", "")),
    }


def _inner(part: Part, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The row itself, also of one that was set aside; where it is from, and its answers."""
    inner = as_row(row.get("row") or {}) if part.split == "rejected" else row
    answers = [str(one) for one in inner.get("answers") or ()]
    return inner, inner.get("provenance") or {}, answers


def _detail(studio: Studio, view: RunView, part: Part, row: dict[str, Any], number: int) -> str:
    rejected = part.split == "rejected"
    about = decisions.decided(view)
    inner, origin, answers = _inner(part, row)
    chunk = _chunk(studio, view, str(origin.get("chunk") or ""))
    drawn = sheet_of(studio, chunk) is not None
    return fragment(
        "row.html.j2",
        row=PLAIN_ROW | inner,
        rejected=rejected,
        stage=part.stage,
        reason=str(row.get("reason", "")),
        why=REASONS.get(str(row.get("reason", "")), ""),
        detail=str(row.get("detail", "")),
        answers=answers,
        origin={"teacher": "", "prompt": "", "variant": ""} | origin,
        chunk=chunk,
        pieces=marked(str(chunk["text"]), origin.get("span"), answers) if chunk else [],
        sheet=f"/runs/{view.name}/data/{part.name}/{number}/page" if drawn else "",
        left=_left(inner),
        name=view.name,
        id=str(row.get("id", "")),
        form_secret=studio.form,
        edit=None if about["closed"] else about["edits"].get(str(row.get("id", ""))),
        said=decisions.WORDS,
        closed=about["closed"],
    )


def _chunk(studio: Studio, view: RunView, identity: str) -> dict[str, Any] | None:
    artifact, _ = _artifact(view, "ingest")
    if artifact is None or not identity:
        return None
    for name in ("chunks.jsonl", "contexts.jsonl"):
        if artifact.path(name).is_file():
            found = studio.rows.open(artifact.path(name)).find(identity)
            if found is not None:
                return found
    return None


def _left(row: dict[str, Any]) -> dict[str, str]:
    """What a rejected thing holds that has no place of its own on the page."""
    known = {"id", "kind", "turns", "question", "answers", "reasoning", "provenance", "options"}
    return {
        TITLES.get(key, key): str(value)[:4000]
        for key, value in row.items()
        if key not in known | KNOWN and value
    }


def marked(text: str, span: Any, answers: list[str]) -> list[tuple[str, str]]:
    """The passage in pieces: (how, text), how being plain, sentence or answer. Without a span, the
    first place where an answer stands word for word."""
    start, end = _place(text, span, answers)
    if end <= start:
        return [("plain", text)]
    around = [one for one in sentences(text) if one.start < end and start < one.end]
    first = min([start, *(one.start for one in around)])
    last = max([end, *(one.end for one in around)])
    cuts = (
        ("plain", 0, first),
        ("sentence", first, start),
        ("answer", start, end),
        ("sentence", end, last),
        ("plain", last, len(text)),
    )
    return [(how, text[a:b]) for how, a, b in cuts if a < b]


def _place(text: str, span: Any, answers: list[str]) -> tuple[int, int]:
    if isinstance(span, dict) and isinstance(span.get("start"), int):
        start, end = span["start"], int(span.get("end") or 0)
        if 0 <= start < end <= len(text):
            return start, end
    for answer in answers:
        at = text.lower().find(answer.lower()) if len(text.lower()) == len(text) else -1
        if answer and at >= 0:
            return at, at + len(answer)
    return 0, 0
