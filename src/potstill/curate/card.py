"""The data card's figures: what a data set holds, where it comes from, what was left out and why.

In: what curation worked on and what came of it. Out: plain values, as `card.json` has them. Knows
nothing of pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from potstill.curate.config import CurateConfig
from potstill.curate.filters import answer_of
from potstill.curate.language import language_of
from potstill.curate.material import Curated, Material
from potstill.curate.split import Split
from potstill.curate.text import words
from potstill.records import Chunk, Document, Example

Card = dict[str, Any]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BINS = 24
MOST_ROWS = 2000  # whose language is told; more would change no share visibly
MOST_PLACES = 400  # answers drawn of a document


def build_card(
    material: Material, documents: Sequence[Document], done: Curated, config: CurateConfig
) -> Card:
    """All figures of the card."""
    rows = [row for split in SPLITS for row in done.kept[split]]
    reasons = Counter(one.reason for one in done.rejected)
    leaks = Counter(
        one.detail.split(" of ")[0] for one in done.rejected if one.reason == "contaminated"
    )
    return {
        "rows": {
            "read": len(material.examples),
            "added": {what: count for what, count in done.added.items() if count},
            "converted": dict(done.converted),
            "kept": {split: len(done.kept[split]) for split in SPLITS},
            "rejected": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        },
        "kinds": _by_split(done, lambda row: row.provenance.variant or row.kind),
        "labels": _by_split(done, lambda row: row.label),
        "lengths": {
            "question": histogram(len(words(row.question)) for row in rows),
            "answer": histogram(len(words(answer_of(row))) for row in rows),
            "passage": histogram(_passage_lengths(material, rows)),
        },
        "duplicates": {reason: reasons[reason] for reason in reasons if _is_repeat(reason)},
        "languages": {
            "documents": dict(Counter(material.languages.values()).most_common()),
            "rows": _languages(rows),
        },
        "coverage": _coverage(material.chunks, documents, rows),
        "passages": {
            "ready_made": len(material.contexts),
            "used": len(
                {one.id for one in material.contexts} & {row.provenance.chunk for row in rows}
            ),
            "rows_without": sum(not row.provenance.chunk for row in rows),
        },
        "by_hand": {what: count for what, count in done.by_hand.items() if count},
        "personal_data": {
            "mode": config.personal_data,
            "rows_masked": done.masked,
            "rows_dropped": reasons["personal_data"] + reasons["answer_is_personal_data"],
        },
        "decontamination": {
            "against": {
                "own test split": len(done.kept["test"]),
                "own validation split": len(done.kept["validation"]),
                **_sizes(material),
            },
            "found": dict(leaks.most_common()),
        },
        "settings": config.model_dump(mode="json"),
    }


def histogram(values: Iterable[int]) -> dict[str, Any]:
    """Counts in at most `BINS` equal bins from 0 up; the last one also holds what is longer.

    The longest hundredth would flatten the picture of all others, so bins end at the rest.
    """
    found = sorted(values)
    if not found:
        return {"width": 1, "counts": [], "median": 0, "p95": 0, "longest": 0}
    end = found[min(len(found) - 1, int(0.99 * len(found)))]
    width = max(1, -(-(end + 1) // BINS))
    bins = [0] * (end // width + 1)
    for value in found:
        bins[min(value // width, len(bins) - 1)] += 1
    return {
        "width": width,
        "counts": bins,
        "median": found[len(found) // 2],
        "p95": found[min(len(found) - 1, int(0.95 * len(found)))],
        "longest": found[-1],
    }


def _by_split(done: Curated, name: Any) -> dict[str, dict[str, int]]:
    """Name -> split -> rows, the most frequent first; rows without a name are left out."""
    found: dict[str, Counter[str]] = {}
    for split, rows in done.kept.items():
        for row in rows:
            if name(row):
                found.setdefault(name(row), Counter())[split] += 1
    ordered = sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))
    return {key: {split: counts[split] for split in SPLITS} for key, counts in ordered}


def _passage_lengths(material: Material, rows: Sequence[Example]) -> list[int]:
    used = {row.provenance.chunk for row in rows}
    passages = (one for one in (*material.chunks, *material.contexts) if one.id in used)
    return [len(words(one.text)) for one in passages]


def _is_repeat(reason: str) -> bool:
    return "duplicate" in reason or reason.startswith("repeats_")


def _languages(rows: Sequence[Example]) -> dict[str, int]:
    """Language -> rows, of a sample spread over all rows; short rows are not told."""
    step = max(1, len(rows) // MOST_ROWS)
    texts = (f"{row.question}\n{answer_of(row)}" for row in rows[::step])
    found = Counter(language_of(text)[0] for text in texts)
    found["not told"] = found.pop("", 0)
    return {code: count for code, count in found.most_common() if count}


def _coverage(
    chunks: Sequence[Chunk], documents: Sequence[Document], rows: Sequence[Example]
) -> list[dict[str, Any]]:
    """What of each document is asked about: ranges of characters, and where answers stand."""
    by_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_document.setdefault(chunk.document, []).append(chunk)
    of_chunk: dict[str, list[Example]] = {}
    for row in rows:
        of_chunk.setdefault(row.provenance.chunk, []).append(row)
    found = []
    for document in documents:
        own = by_document.get(document.id, [])
        asked = [chunk for chunk in own if chunk.id in of_chunk]
        if not own:
            continue
        ranges = merged((chunk.start, chunk.end) for chunk in asked)
        places = sorted(
            chunk.start + row.provenance.span.start
            for chunk in asked
            for row in of_chunk[chunk.id]
            if row.provenance.span is not None
        )
        found.append(
            {
                "source": document.source,
                "characters": len(document.text),
                "chunks": len(own),
                "chunks_asked": len(asked),
                "rows": sum(len(of_chunk[chunk.id]) for chunk in asked),
                "share": sum(end - start for start, end in ranges) / len(document.text),
                "ranges": ranges,
                "answers": places[:: max(1, -(-len(places) // MOST_PLACES))],
            }
        )
    return found


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of half-open ranges, in order."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _sizes(material: Material) -> dict[str, int]:
    """Evaluation set -> its questions; a question's name begins with its file's."""
    return dict(Counter(one.name.rpartition(", ")[0] for one in material.evaluation))
