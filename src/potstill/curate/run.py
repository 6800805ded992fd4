"""The curate stage: reads what generation left, curates it, writes the splits and the data card.

In: documents, chunks, contexts, examples, evaluation sets. Out: train.jsonl, validation.jsonl,
test.jsonl, rejected.jsonl, summary.json, card.json, card.md, card.html, with read + added = kept +
rejected; contexts.jsonl where rows were dealt already, edits.jsonl where people decided about rows.
How rows are judged is `curation.py`, of those that were dealt already `prepared.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from potstill.core.files import read_records, write_atomic, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.curate.card import Card, build_card
from potstill.curate.config import CurateConfig
from potstill.curate.curation import STEPS, Curated, Material, Similar, curate
from potstill.curate.decontaminate import read_evaluation
from potstill.curate.edits import edits_file, read_edits
from potstill.curate.page import markdown, render
from potstill.curate.plan import evaluation_files
from potstill.curate.prepared import CONTEXTS, curate_prepared, read_prepared
from potstill.curate.split import Split
from potstill.errors import InputError
from potstill.records import Chunk, Document, Example

FEW_ROWS = 50
LEFT_OUT = {
    "unknown": "no row has that id any more, so nothing was done.",
    "unchangeable": "the question stands in no turn of its row, so the row stays as it was.",
    "kept_out": "the row is rejected all the same, for a reason that protects the measurement.",
}
"""What could not be done as it was decided, in words."""


def run(
    config: CurateConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Curate the rows of the generate stage. Errors: InputError if a split stays empty."""
    ingested = inputs["ingest"]
    prepared = read_prepared(config, context.project) if config.prepared else None
    documents = list(read_records(ingested.path("documents.jsonl"), Document))
    material = Material(
        chunks=list(read_records(ingested.path("chunks.jsonl"), Chunk)),
        contexts=[
            *read_records(ingested.path("contexts.jsonl"), Chunk),
            *(prepared.contexts if prepared else ()),
        ],
        examples=prepared.examples
        if prepared
        else list(read_records(inputs["generate"].path("examples.jsonl"), Example)),
        languages={one.id: one.language for one in documents if one.language},
        evaluation=[
            one
            for name, path in evaluation_files(config, context.project).items()
            for one in read_evaluation(path, name)
        ],
        edits=read_edits(edits_file(config, context.project)) if config.edits else {},
    )

    def on_step(step: str) -> None:
        context.events.progress(STEPS.index(step) + 1, len(STEPS), "steps", step=step)

    if prepared:
        done = curate_prepared(prepared, material, config)
        write_records(draft.data / CONTEXTS, prepared.contexts)
    else:
        done = curate(material, config, context.seed, _similar(config, context), on_step)
    for one in done.rejected:
        context.events.emit("rejected", id=one.id, reason=one.reason, detail=one.detail)
    reasons = Counter(one.reason for one in done.rejected)
    total = len(material.examples) + done.added.total()
    _check_enough(done.kept, total, reasons)
    for what, words in LEFT_OUT.items():
        if count := done.by_hand[what]:
            context.events.warning(
                f"{count} decision{'s' * (count > 1)} of {config.edits}: {words}"
            )
    if len(done.kept["train"]) < FEW_ROWS:
        context.events.warning(
            f"Only {len(done.kept['train'])} training rows: a student learns little from so few. "
            "Add documents, or ask for more pairs of each chunk (generate.pairs_per_chunk)."
        )
    for split, rows in done.kept.items():
        write_records(draft.data / f"{split}.jsonl", rows)
    write_records(draft.data / "rejected.jsonl", done.rejected)
    if config.edits:
        write_records(draft.data / "edits.jsonl", material.edits.values())
    write_json(draft.data / "summary.json", _summary(done, total, reasons))
    _write_card(build_card(material, documents, done, config), draft.data)
    context.events.progress(total, total, "rows")


def _summary(done: Curated, total: int, reasons: Mapping[str, int]) -> dict[str, object]:
    return {
        "input": total,
        "added": dict(sorted((what, count) for what, count in done.added.items() if count)),
        "converted": dict(sorted(done.converted.items())),
        "masked": done.masked,
        "by_hand": dict(sorted((what, count) for what, count in done.by_hand.items() if count)),
        "kept": {split: len(done.kept[split]) for split in ("train", "validation", "test")},
        "rejected": dict(sorted(reasons.items())),
    }


def _similar(config: CurateConfig, context: Context) -> Similar | None:
    if config.semantic_duplicate is None:
        return None
    from potstill.curate.semantic import finder  # brings torch along

    return finder(config.encoder, context)


def _write_card(card: Card, folder: Path) -> None:
    write_json(folder / "card.json", card)
    write_atomic(folder / "card.md", markdown(card))
    write_atomic(folder / "card.html", render(card))


def _check_enough(
    kept: Mapping[Split, list[Example]], total: int, reasons: Mapping[str, int]
) -> None:
    empty = [split for split in ("train", "validation", "test") if not kept[split]]
    if not empty:
        return
    worst = ", ".join(f"{reason} {count}" for reason, count in Counter(reasons).most_common(3))
    raise InputError(
        f"Of {total} rows too few are left: none for {', '.join(empty)}"
        + (f" (rejected: {worst})." if worst else "."),
        "Add documents, make smaller chunks (ingest.chunk_tokens), ask for more rows of each "
        "(generate), or loosen the filters (curate).",
    )
