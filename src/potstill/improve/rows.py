"""The rows of an improvement: candidates, a replay of old rows, the test rows as they were.

In: an earlier run's splits, candidates, settings. Out: a folder that `curate.prepared` reads, with
about.json beside the rows: which feedback is in which split, and which test rows are the target.
Knows no model and no recipe.

Old training rows are replayed because a student that sees corrections alone forgets the rest. An
old row that asks what a candidate asks is not replayed: the candidate says what is right.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.core.files import fsync_folder, whole_folder, write_json, write_records
from potstill.curate.prepared import CONTEXTS, question_key
from potstill.curate.split import MOST_PROTECTED_FIRST, Split
from potstill.improve.candidates import Candidate, Gathered
from potstill.improve.config import ImproveConfig
from potstill.records import Chunk, Example

ABOUT = "about.json"


@dataclass
class Mixture:
    """Rows by split, passages that the run's documents do not have, and what they are."""

    rows: dict[Split, list[Example]]
    contexts: list[Chunk]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> list[str]:
        """Ids of the test rows that the improvement is for."""
        return list(self.about["target"])


def mix(
    old: Mapping[Split, Sequence[Example]],
    gathered: Gathered,
    known: Iterable[str],
    tested: Iterable[str],
    config: ImproveConfig,
    seed: int,
) -> Mixture:
    """Put an improvement's rows together.

    old: an earlier run's rows. known: ids of the passages that its documents have. tested: ids of
    held-out candidates of earlier improvements: the current student was judged by them already, so
    they are test rows like the old ones, and not the target.
    """
    parts: dict[Split, list[Candidate]] = {split: [] for split in MOST_PROTECTED_FIRST}
    for one in gathered.candidates:
        parts[one.part(seed, config.held_out, config.validation)].append(one)
    asked = {question_key(one.example) for one in gathered.candidates}
    pool = [row for row in old["train"] if question_key(row) not in asked]
    wanted = min(len(pool), round(config.replay * len(parts["train"])))
    replayed = sorted(pool, key=lambda row: _lot(seed, row.id))[:wanted]
    rows: dict[Split, list[Example]] = {
        split: [one.example for one in parts[split]] for split in MOST_PROTECTED_FIRST
    }
    rows["train"] += sorted(replayed, key=lambda row: row.id)
    rows["validation"] = [*old["validation"], *rows["validation"]]
    rows["test"] = [*old["test"], *rows["test"]]
    before, there = set(tested), set(known)
    passages = {
        one.passage.id: one.passage
        for one in gathered.candidates
        if one.passage is not None and one.passage.id not in there
    }
    about = {
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "feedback": {split: [one.feedback for one in parts[split]] for split in parts},
        "left": dict(gathered.left),
        "replayed": len(replayed),
        "superseded": len(old["train"]) - len(pool),
        "held_out": [one.example.id for one in parts["test"]],
        "target": [one.example.id for one in parts["test"] if one.example.id not in before],
    }
    return Mixture(rows, [passages[name] for name in sorted(passages)], about)


def write(mixture: Mixture, folder: Path) -> None:
    """Leave the rows in `folder`, whole or not at all; what was there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as part:
        for split, rows in mixture.rows.items():
            write_records(part / f"{split}.jsonl", rows)
        write_records(part / CONTEXTS, mixture.contexts)
        write_json(part / ABOUT, mixture.about)
    fsync_folder(folder.parent)


def counts(mixture: Mixture) -> dict[str, int]:
    """Candidates and old rows, for people."""
    feedback = {split: len(ids) for split, ids in mixture.about["feedback"].items()}
    found = Counter({f"{split}_candidates": number for split, number in feedback.items()})
    for split, rows in mixture.rows.items():
        found[f"{split}_old"] = len(rows) - feedback[split]
    return dict(found)


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:replay:{name}".encode()).hexdigest()
