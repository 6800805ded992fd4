"""The curate stage: split first, then judge every row, then drop what repeats an earlier one.

In: examples and chunks. Out: train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl,
summary.json, with input = kept + rejected. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from potstill.core.files import read_records, write_json, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.curate.config import CurateConfig
from potstill.curate.dedup import Seen
from potstill.curate.filters import judge
from potstill.curate.split import MOST_PROTECTED_FIRST, Split, assign, leaking
from potstill.errors import InputError
from potstill.records import Chunk, Example, Rejected, Verdict

FEW_ROWS = 50


def run(
    config: CurateConfig, inputs: Mapping[str, Artifact], draft: Draft, context: Context
) -> None:
    """Curate the rows of the generate stage. Errors: InputError if a split stays empty."""
    chunks = list(read_records(inputs["ingest"].path("chunks.jsonl"), Chunk))
    examples = list(read_records(inputs["generate"].path("examples.jsonl"), Example))
    kept, rejected = curate(chunks, examples, config, context.seed)
    for one in rejected:
        context.events.emit("rejected", id=one.id, reason=one.reason, detail=one.detail)
    reasons = Counter(one.reason for one in rejected)
    _check_enough(kept, len(examples), reasons)
    if len(kept["train"]) < FEW_ROWS:
        context.events.warning(
            f"Only {len(kept['train'])} training rows: a student learns little from so few. Add "
            "documents, or ask for more pairs of each chunk (generate.pairs_per_chunk)."
        )
    for split, rows in kept.items():
        write_records(draft.data / f"{split}.jsonl", rows)
    write_records(draft.data / "rejected.jsonl", rejected)
    write_json(
        draft.data / "summary.json",
        {
            "input": len(examples),
            "kept": {split: len(kept[split]) for split in ("train", "validation", "test")},
            "rejected": dict(sorted(reasons.items())),
        },
    )
    context.events.progress(len(examples), len(examples), "rows")


def curate(
    chunks: list[Chunk], examples: list[Example], config: CurateConfig, seed: int
) -> tuple[dict[Split, list[Example]], list[Rejected]]:
    """Split and judge; every example comes back once, kept in a split or rejected.

    Rows of the test split are judged first, then validation, then training, so that of two rows
    that say the same the more protected one stays and nothing seen in training is tested.
    """
    texts = {chunk.id: chunk.text for chunk in chunks}
    splits = assign(
        chunks,
        Counter(example.provenance.chunk for example in examples),
        validation=config.validation_fraction,
        test=config.test_fraction,
        split_by=config.split_by,
        seed=seed,
    )
    leaks = leaking(chunks, splits)
    kept: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    rejected: list[Rejected] = []
    seen = Seen(config.near_duplicate)
    home: dict[str, Split] = {}
    for split in MOST_PROTECTED_FIRST:
        for example in examples:
            chunk = example.provenance.chunk
            if splits.get(chunk, "train") != split:
                continue
            verdict = _verdict(example, texts.get(chunk), leaks.get(chunk), config)
            if verdict.keep and (repeat := seen.repeat_of(example)) is not None:
                crosses = home[repeat.of] != split
                reason = f"repeats_{home[repeat.of]}" if crosses else repeat.kind
                detail = f"of row {repeat.of}, similarity {repeat.similarity:.2f}"
                verdict = Verdict(keep=False, reason=reason, detail=detail)
            if verdict.keep:
                seen.add(example)
                home[example.id] = split
                kept[split].append(example)
            else:
                rejected.append(
                    Rejected(
                        id=example.id,
                        stage="curate",
                        reason=verdict.reason,
                        detail=verdict.detail,
                        row=example.model_dump(mode="json"),
                    )
                )
    return kept, rejected


def _verdict(
    example: Example, passage: str | None, leak: str | None, config: CurateConfig
) -> Verdict:
    if passage is None:
        return Verdict(keep=False, reason="no_chunk", detail=example.provenance.chunk)
    if leak is not None:
        return Verdict(keep=False, reason="overlaps_other_split", detail=f"chunk {leak}")
    return judge(example, passage, config)


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
