"""Takes rows through curation, from what was read to what is kept, in memory.

In: rows, chunks, evaluation sets, a CurateConfig. Out: the rows of each split, what was rejected
with its reason, and what was done on the way. Knows no files.

    convert -> mask -> split -> edits -> judge each row -> duplicates -> leaks -> variants
    -> typing errors

The split comes before anything that multiplies rows. Rows of the test split are judged first, then
validation, then training, so that of two rows that say the same the more protected one stays and
nothing seen in training is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from potstill.curate import personal
from potstill.curate.config import CurateConfig
from potstill.curate.decontaminate import Evaluation, asked
from potstill.curate.dedup import Repeat, Text, repeats
from potstill.curate.edits import Dealt, apply_edits
from potstill.curate.filter_plugins import plugin_checks
from potstill.curate.filters import CHECKS, REVIEWED, Surroundings, answer_of, judge, reject
from potstill.curate.language import expected_language
from potstill.curate.material import (
    Curated,
    Material,
    Row,
    as_rejected,
    clear_language,
    converted,
    masked,
    shown,
)
from potstill.curate.noise import typo_variant
from potstill.curate.split import MOST_PROTECTED_FIRST, Split, families, leaking, split_rows
from potstill.curate.text import words
from potstill.records import Example, Verdict

__all__ = ["STEPS", "Curated", "Material", "Similar", "curate"]

Similar = Callable[[Sequence[str], float, Sequence[str]], list[Repeat | None]]
"""Texts, least similarity, families -> repeats in meaning (`semantic.py`)."""


STEPS = ("read", "split", "judged", "compared with each other", "compared with evaluation sets")
"""What `curate` says as it goes on, in order."""


def _nobody(step: str) -> None:
    """Is told nothing."""


def curate(
    material: Material,
    config: CurateConfig,
    seed: int,
    similar: Similar | None = None,
    on_step: Callable[[str], None] = _nobody,
) -> Curated:
    """Split and judge; every row comes back once, kept in a split or rejected.

    similar: finds repeats in meaning, needed where `config.semantic_duplicate` is set. on_step is
    told each of `STEPS` when it is done.
    """
    passages = {chunk.id: chunk.text for chunk in (*material.contexts, *material.chunks)}
    done = Curated({"train": [], "validation": [], "test": []}, [], Counter(), Counter(), 0)
    examples, together = converted(material, passages, config, done)
    unmasked = examples
    examples = masked(examples, config, done)
    on_step(STEPS[0])
    rows, dealt = _split(examples, together, material, config, seed)
    if material.edits:
        rows, done.by_hand = apply_edits(rows, dealt, unmasked, material, config)
        done.added["by_hand"] = done.by_hand["add"]
    on_step(STEPS[1])
    _judge(rows, material, passages, config)
    on_step(STEPS[2])
    _drop_repeats(rows, config, similar)
    on_step(STEPS[3])
    _drop_leaks(rows, material, config)
    on_step(STEPS[4])
    _drop_orphans(rows)
    rows += _typos(rows, material, config, seed, done)
    for row in rows:
        if row.by_hand and not row.verdict.keep and row.verdict.reason != "rejected_by_hand":
            done.by_hand["kept_out"] += 1
        if row.verdict.keep:
            done.kept[row.split].append(row.example)
        else:
            done.rejected.append(as_rejected(shown(row.example, config), row.verdict))
    return done


def _split(
    examples: Sequence[Example],
    together: Mapping[str, str],
    material: Material,
    config: CurateConfig,
    seed: int,
) -> tuple[list[Row], Dealt]:
    """Each row with its split, the most protected first, and in each the originals first; and how
    the passages were dealt."""
    splits, of_chunk = split_rows(
        material.chunks,
        material.contexts,
        examples,
        validation=config.validation_fraction,
        test=config.test_fraction,
        split_by=config.split_by,
        seed=seed,
        together=together,
    )
    leaks = leaking(material.chunks, of_chunk)
    known = {chunk.id for chunk in (*material.contexts, *material.chunks)}
    rows = []
    for example, root, split in zip(examples, families(examples), splits, strict=True):
        verdict, chunk = Verdict(keep=True), example.provenance.chunk
        if chunk and chunk not in known:
            verdict = reject("no_chunk", chunk)
        elif chunk in leaks:
            verdict = reject("overlaps_other_split", f"chunk {leaks[chunk]}")
        elif other := _elsewhere(example, split, of_chunk):
            verdict = reject("overlaps_other_split", f"chunk {other}, which it shows too")
        elif example.provenance.parent is not None and split != "train":
            verdict = reject(f"variant_of_{split}", f"of row {example.provenance.parent}")
        name = root.provenance.parent or root.id  # a parent that is not here names one too
        rows.append(Row(example, name, together.get(name, name), split, verdict))
    rank = {split: place for place, split in enumerate(MOST_PROTECTED_FIRST)}
    rows.sort(key=lambda row: (rank[row.split], row.example.provenance.parent is not None))
    return rows, Dealt(of_chunk, leaks)


def _elsewhere(example: Example, split: Split, of_chunk: Mapping[str, Split]) -> str | None:
    """Of a row that shows several chunks, the first that is in another split."""
    also = example.provenance.also
    return next((chunk for chunk in also if of_chunk.get(chunk, split) != split), None)


def _judge(
    rows: Sequence[Row], material: Material, passages: Mapping[str, str], config: CurateConfig
) -> None:
    masks = config.personal_data == "mask"

    @cache
    def passage(chunk: str) -> str:
        return personal.masked(passages[chunk]) if masks else passages[chunk]

    checks = (*CHECKS, *plugin_checks(config))
    languages = {} if config.language == "any" else _languages(rows, material)
    for row in (one for one in rows if one.verdict.keep):
        chunk = row.example.provenance.chunk
        found, expected = languages.get(id(row), ("", ""))
        if config.language != "auto":
            expected = config.language
        around = Surroundings(config, passage(chunk) if chunk else None, expected, found)
        row.verdict = judge(row.example, around, REVIEWED if row.by_hand else checks)


def _languages(rows: Sequence[Row], material: Material) -> dict[int, tuple[str, str]]:
    """Of each row what it is in and, by the rows about documents like its own, should be in."""
    found = {id(row): clear_language(row.example) for row in rows if row.verdict.keep}
    of_group: dict[tuple[str, str, bool], Counter[str]] = {}
    groups = {}
    for row in (one for one in rows if one.verdict.keep):
        source = row.example.provenance
        known = material.languages.get(source.document, "")
        group = (known, "" if known else source.document, bool(source.teacher))
        groups[id(row)] = group
        counts = of_group.setdefault(group, Counter())
        if found[id(row)]:
            counts[found[id(row)]] += 1
    expected = {group: expected_language(counts, group[0]) for group, counts in of_group.items()}
    return {name: (language, expected[groups[name]]) for name, language in found.items()}


def _drop_repeats(rows: Sequence[Row], config: CurateConfig, similar: Similar | None) -> None:
    """Equal and nearly equal rows, then (where asked for) questions, then meanings."""

    def together(one: Example) -> str:
        return f"{one.question or _last_asked(one)}\n{answer_of(one)}"

    def compare(text: Callable[[Example], str], kinds: tuple[str, str]) -> None:
        left = [row for row in rows if row.verdict.keep]
        texts = [Text(tuple(words(text(row.example))), row.family) for row in left]
        _mark(left, repeats(texts, config.near_duplicate), kinds)

    compare(together, ("exact_duplicate", "near_duplicate"))
    if config.duplicates == "question":
        compare(lambda one: one.question or _last_asked(one), ("duplicate_question",) * 2)
    if config.semantic_duplicate is not None and similar is not None:
        left = [row for row in rows if row.verdict.keep]
        texts, roots = [together(row.example) for row in left], [row.family for row in left]
        found = similar(texts, config.semantic_duplicate, roots)
        _mark(left, found, ("semantic_duplicate",) * 2)


def _last_asked(example: Example) -> str:
    asked = (turn.content for turn in reversed(example.turns) if turn.role == "user")
    return next(asked, "")


def _mark(rows: Sequence[Row], found: Sequence[Repeat | None], kinds: tuple[str, str]) -> None:
    for row, repeat in zip(rows, found, strict=True):
        if repeat is None:
            continue
        first = rows[repeat.of]
        if row.by_hand and first.split == row.split:
            continue
        reason = kinds[0] if repeat.exact else kinds[1]
        if first.split != row.split:
            reason = f"repeats_{first.split}"
        detail = f"of row {first.example.id}, similarity {repeat.similarity:.2f}"
        row.verdict = reject(reason, detail)


def _drop_leaks(rows: Sequence[Row], material: Material, config: CurateConfig) -> None:
    """Validation rows that repeat a test row or another evaluation set, training rows those too."""
    evaluation = Evaluation(config.decontaminate_words)
    for one in material.evaluation:
        evaluation.add(one)
    for split in MOST_PROTECTED_FIRST:
        own = [row for row in rows if row.split == split and row.verdict.keep]
        for row in own if split != "test" else ():
            row.verdict = _leak(row, evaluation)
        for row in own if split != "train" else ():
            if row.verdict.keep:
                evaluation.add(asked(row.example, f"{split} row {row.example.id}"))


def _leak(row: Row, evaluation: Evaluation) -> Verdict:
    leak = evaluation.leak(asked(row.example, row.example.id))
    if leak is None:
        return row.verdict
    return reject("contaminated", f"{leak.kind} of {leak.of}")


def _drop_orphans(rows: Sequence[Row]) -> None:
    """Variants whose original was rejected: what made it unfit is in them, too."""
    originals: dict[str, Verdict] = {}
    for row in rows:
        if row.example.provenance.parent is None:
            originals.setdefault(row.example.id, row.verdict)
    for row in rows:
        verdict = originals.get(row.root)
        if row.verdict.keep and not row.by_hand and verdict is not None and not verdict.keep:
            row.verdict = reject("parent_rejected", f"row {row.root} is rejected: {verdict.reason}")


def _typos(
    rows: Sequence[Row], material: Material, config: CurateConfig, seed: int, done: Curated
) -> list[Row]:
    """Variants with typing errors of the training rows that stay; each must leak nothing itself."""
    made: list[Row] = []
    if not config.typo_variants:
        return made
    taken = {tuple(words(row.example.question)) for row in rows}
    for row in rows:
        if not row.verdict.keep or row.split != "train" or row.example.provenance.parent:
            continue
        for number in range(config.typo_variants):
            variant = typo_variant(
                row.example, number, config.typo_rate, seed, numbers=config.typo_numbers
            )
            if variant is None or tuple(words(variant.question)) in taken:
                continue  # nothing to misspell, or it came out as a row that is there
            taken.add(tuple(words(variant.question)))
            made.append(Row(variant, row.root, row.family, "train", Verdict(keep=True)))
    done.added["typo"] = len(made)
    return made
