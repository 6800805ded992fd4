"""Rows that are dealt already: an earlier run's, and what people said of its student's answers.

In: a folder with train.jsonl, validation.jsonl, test.jsonl and contexts.jsonl, which is made by
`potstill improve`. Out: the same splits, each row kept where it stands or rejected with a reason.
Nothing is dealt again, so a test row stays the one that an earlier student was measured on.

Rows of the earlier run were judged there and are only held against the test rows. Rows that come
from people were read by a reviewer, so their form is not judged: they are masked, looked through
for markup and instructions, and held against the test rows. Knows no model and no database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.core.files import file_digest, read_records
from potstill.curate import personal
from potstill.curate.config import CurateConfig
from potstill.curate.decontaminate import Evaluation, asked
from potstill.curate.filters import REVIEWED, Surroundings, judge, reject
from potstill.curate.material import Curated, Material, as_rejected, shown
from potstill.curate.split import MOST_PROTECTED_FIRST, Split
from potstill.curate.text import words
from potstill.errors import InputError
from potstill.records import Chunk, Example, Verdict

FEEDBACK = "feedback@1"
"""Provenance of a row that comes from feedback, where others have their prompt."""
CONTEXTS = "contexts.jsonl"
FILES = (*(f"{split}.jsonl" for split in MOST_PROTECTED_FIRST), CONTEXTS)
Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Prepared:
    """What the folder holds; `contexts` are passages that the run's documents do not have."""

    rows: Mapping[Split, list[Example]]
    contexts: list[Chunk]

    @property
    def examples(self) -> list[Example]:
        """The rows of all splits."""
        return [row for split in MOST_PROTECTED_FIRST for row in self.rows[split]]


def prepared_folder(config: CurateConfig, project: Path) -> Path:
    """Where the rows are. Errors: InputError for a folder that is not there, or outside."""
    folder = (project / config.prepared).resolve()
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if not folder.is_relative_to(project.resolve()) or lacking:
        raise InputError(
            f"curate.prepared names {config.prepared}, which is no folder below {project} with "
            f"{', '.join(FILES)}.",
            "Such a folder is made by: potstill improve RUN",
        )
    return folder


def prepared_facts(config: CurateConfig, project: Path) -> dict[str, str]:
    """Digests of the files. Errors: InputError."""
    folder = prepared_folder(config, project)
    return {f"prepared {name}": file_digest(folder / name) for name in FILES}


def read_prepared(config: CurateConfig, project: Path) -> Prepared:
    """The rows and passages. Errors: InputError for a damaged file, or two rows of one id."""
    folder = prepared_folder(config, project)
    rows = {
        split: list(read_records(folder / f"{split}.jsonl", Example))
        for split in MOST_PROTECTED_FIRST
    }
    found = Prepared(rows, list(read_records(folder / CONTEXTS, Chunk)))
    ids = Counter(row.id for row in found.examples)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise InputError(f"{folder} holds {len(twice)} rows twice, such as {twice[0]}.")
    return found


def curate_prepared(prepared: Prepared, material: Material, config: CurateConfig) -> Curated:
    """Each row kept in its split, or rejected; test rows of the earlier run always stay."""
    passages = {one.id: one.text for one in (*material.contexts, *material.chunks)}
    done = Curated({"train": [], "validation": [], "test": []}, [], Counter(), Counter(), 0)
    evaluation = Evaluation(config.decontaminate_words)
    for one in material.evaluation:
        evaluation.add(one)
    protected: dict[Key, str] = {}
    alone: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for split in MOST_PROTECTED_FIRST:
        for given in prepared.rows[split]:
            row = given
            if is_feedback(row) and config.personal_data == "mask":
                row = personal.masked_row(given)
                done.masked += row != given
            verdict = _verdict(row, split, passages, config)
            if verdict.keep and split != "test":
                verdict = _leak(row, evaluation, protected, alone)
            if verdict.keep:
                done.kept[split].append(row)
            else:
                done.rejected.append(as_rejected(shown(row, config), verdict))
        for row in done.kept[split] if split != "train" else ():
            name = f"{split} row {row.id}"
            evaluation.add(asked(row, name))
            protected[question_key(row)] = name
            if not earlier(row):
                alone.setdefault(row.provenance.chunk, []).append(
                    (tuple(words(row.question)), name)
                )
    return done


def is_feedback(row: Example) -> bool:
    """Whether a row comes from people who used the student."""
    return row.provenance.prompt == FEEDBACK


def question_key(row: Example) -> Key:
    """The same for rows that ask the same of the same passage. Of a conversation all that was
    asked counts, for its last question alone may mean anything."""
    return row.provenance.chunk, tuple(words("\n".join([*earlier(row), row.question])))


def earlier(row: Example) -> list[str]:
    """What was said to the student in a conversation before its last question."""
    return [one.content for one in row.turns[:-2] if one.role == "user"]


def holds(said: Sequence[str], part: Sequence[str]) -> bool:
    """Whether the words stand there, one after the other."""
    size = len(part)
    return any(
        tuple(said[start : start + size]) == tuple(part) for start in range(len(said) - size + 1)
    )


def _verdict(
    row: Example, split: Split, passages: Mapping[str, str], config: CurateConfig
) -> Verdict:
    if not is_feedback(row):
        return Verdict(keep=True)
    chunk = row.provenance.chunk
    if chunk and chunk not in passages:
        return reject("no_chunk", chunk)
    return judge(row, Surroundings(config, passages.get(chunk)), REVIEWED)


def _leak(
    row: Example,
    evaluation: Evaluation,
    protected: Mapping[Key, str],
    alone: Mapping[str, Sequence[tuple[tuple[str, ...], str]]],
) -> Verdict:
    """Whether a row tells what a more protected one asks. Evaluation sets of elsewhere may ask
    different passages alike; here the passage is known, and the same question of it is a leak
    whatever its answer, also where a conversation asks it on its way (`alone`: the questions of
    each passage that were asked by themselves)."""
    for turn in earlier(row):
        said = words(turn)
        for question, owner in alone.get(row.provenance.chunk, ()):
            if question and holds(said, question):
                return reject("contaminated", f"an earlier turn asks the same_question of {owner}")
    if name := protected.get(question_key(row)):
        return reject("contaminated", f"same_question of {name}")
    leak = evaluation.leak(asked(row, row.id))
    if leak is not None:
        return reject("contaminated", f"{leak.kind} of {leak.of}")
    return Verdict(keep=True)
