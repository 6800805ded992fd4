"""What curation works on, what comes of it, and what is done to rows before they are judged.

In: records as they were read. Out: plain questions, personal data masked where that is asked for.
Knows nothing of splits or of other rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from potstill.curate import personal
from potstill.curate.choices import UnconvertibleError, has_choices
from potstill.curate.config import CurateConfig
from potstill.curate.convert import convert
from potstill.curate.decontaminate import Asked
from potstill.curate.filters import answer_of, reject
from potstill.curate.language import sure_language
from potstill.curate.split import Split
from potstill.records import Chunk, Example, Rejected, Verdict

if TYPE_CHECKING:
    from potstill.curate.edits import Edit


@dataclass(frozen=True)
class Material:
    """What curation works on."""

    chunks: Sequence[Chunk]
    examples: Sequence[Example]
    contexts: Sequence[Chunk] = ()
    languages: Mapping[str, str] = field(default_factory=dict)
    """Document -> its language."""
    evaluation: Sequence[Asked] = ()
    """Questions of evaluation sets from elsewhere."""
    edits: Mapping[str, Edit] = field(default_factory=dict)
    """What people decided, by row."""


@dataclass
class Row:
    """A row on its way through curation."""

    example: Example
    root: str
    """Id of the row that it varies in the end; its own id if it varies none."""
    family: str
    """Rows that are alike on purpose: those of one root, or made from one row."""
    split: Split
    verdict: Verdict
    by_hand: bool = False
    """Whether a person decided about it, so that its form is not judged."""


@dataclass
class Curated:
    """What came of it. Rows that were read and made = kept + rejected."""

    kept: dict[Split, list[Example]]
    rejected: list[Rejected]
    converted: Counter[str]
    """Kind -> rows of it that became plain questions."""
    added: Counter[str]
    """What made more rows (blanks, typo) -> how many."""
    masked: int
    """Rows in which personal data was masked."""
    by_hand: Counter[str] = field(default_factory=Counter)
    """What people decided (`edits.py`) -> how many rows; kept_out: accepted, edited or added, and
    rejected all the same for what protects the measurement."""


def converted(
    material: Material, passages: Mapping[str, str], config: CurateConfig, done: Curated
) -> tuple[list[Example], dict[str, str]]:
    """Ready-made rows of the kinds to convert, converted; what cannot be is rejected.

    Also row -> row that it was made with: each names what another asks for.
    """
    result: list[Example] = []
    together: dict[str, str] = {}
    for example in material.examples:
        if example.kind == "qa" and not example.provenance.teacher and has_choices(example):
            example = example.model_copy(update={"kind": "multiple_choice"})
        if example.kind not in config.convert or example.provenance.teacher:
            result.append(example)
            continue
        passage = passages.get(example.provenance.chunk, "")
        language = config.language
        if language in ("auto", "any"):
            language = clear_language(example) or "en"
        try:
            made = convert(example, passage, language)
        except UnconvertibleError as failure:
            verdict = reject(failure.reason, failure.detail)
            done.rejected.append(as_rejected(shown(example, config), verdict))
            continue
        done.converted[example.kind] += 1
        done.added["blanks"] += len(made) - 1
        if len(made) > 1:
            together.update((one.id, example.id) for one in made)
        result += made
    return result, together


def masked(examples: list[Example], config: CurateConfig, done: Curated) -> list[Example]:
    if config.personal_data != "mask":
        return examples
    result = []
    for example in examples:
        changed = personal.masked_row(example)
        done.masked += changed != example
        result.append(changed)
    return result


def clear_language(example: Example) -> str:
    """What a row is clearly written in; empty where that is not clear."""
    return sure_language(f"{example.question}\n{answer_of(example)}")


def shown(example: Example, config: CurateConfig) -> Example:
    """What may be kept of a rejected row: where personal data is unwanted, the row masked."""
    return example if config.personal_data == "keep" else personal.masked_row(example)


def as_rejected(example: Example, verdict: Verdict) -> Rejected:
    return Rejected(
        id=example.id,
        stage="curate",
        reason=verdict.reason,
        detail=verdict.detail,
        row=example.model_dump(mode="json"),
    )
