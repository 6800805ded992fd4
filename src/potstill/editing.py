"""Rows of a run, decided about by a person: the run goes on with what was decided.

    from potstill.editing import decide, rows_of

    run = open_run("quickstart")
    decide(run, "3f9a", "edit", answer="nine hours")
    potstill.run(Recipe.load(run.folder / "recipe.yaml"))     # ingest and generate are reused

In: a run, the id of a row, a decision. Out: a file of decisions in the project, which the run's
recipe names (`curate.edits`). Changes no result: the run's next curation reads the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from potstill.core.files import disk_errors, read_records, write_atomic, write_records
from potstill.curate.edits import Action, Edit, edits_file, read_edits
from potstill.curate.split import MOST_PROTECTED_FIRST
from potstill.errors import StoreError, UsageError
from potstill.pipeline import Run
from potstill.recipe import Recipe
from potstill.records import Chunk, Example, Rejected

FOLDER = "edits"
ADDED = "hand-"


def edits_of(this: Run) -> dict[str, Edit]:
    """What was decided about the run's rows so far, by row. Errors: InputError for a damaged
    file."""
    return read_edits(_place(this)[0])


def waiting(this: Run, edits: Mapping[str, Edit] | None = None) -> int:
    """How many decisions the run's rows do not show yet.

    Those that differ from the ones that its last curation read; it left a copy of them. edits: as
    `edits_of` has them, where they were read already.
    """
    now = edits_of(this) if edits is None else edits
    then = _read_by_curation(this)
    return sum(now.get(name) != then.get(name) for name in {*now, *then})


def decide(
    this: Run,
    row: str,
    action: Action,
    *,
    question: str = "",
    answer: str = "",
    chunk: str = "",
    note: str = "",
) -> Edit:
    """Decide about a row, of which the last word counts. row: its id; "" for a new one (`add`).

    Errors: UsageError for a row that is not there or a decision that says too little, InputError
    for a damaged file, StoreError.
    """
    decided = edits_of(this)
    before = decided.get(row)
    if action == "add":
        row = row or f"{ADDED}{secrets.token_hex(6)}"
        _check_passage(this, chunk)
    elif before is not None and before.action == "add":
        if action != "edit":
            raise UsageError(f"The row {row} was written by hand.", "Take it back to be rid of it.")
        action = "add"
        question, answer = question or before.fields.question, answer or before.fields.answer
        chunk, note = before.fields.chunk, note or before.fields.note
    elif before is None:
        row = _whole(this, row)
    fields = {"question": question, "answer": answer, "chunk": chunk, "note": note}
    try:
        made = Edit.model_validate({"id": row, "action": action, "fields": fields})
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{said[0].upper()}{said[1:]}.", "Write it, then save again.") from error
    with _changing(this) as now:
        now.pop(row, None)
        now[row] = made
    return made


def take_back(this: Run, row: str) -> None:
    """Forget what was decided about a row. Errors: UsageError if nothing was."""
    with _changing(this) as now:
        if row not in now:
            raise UsageError(f"Nothing was decided about the row {row[:80]}.")
        del now[row]


def rows_of(this: Run) -> Iterator[tuple[str, Example | Rejected]]:
    """(train, validation, test or rejected, row) of the run's last curation.

    Errors: StoreError if there is none.
    """
    curated = this.artifact("curate")
    for split in MOST_PROTECTED_FIRST:
        if curated.path(f"{split}.jsonl").exists():
            for row in read_records(curated.path(f"{split}.jsonl"), Example):
                yield split, row
    for aside in read_records(curated.path("rejected.jsonl"), Rejected):
        yield "rejected", aside


@contextmanager
def _changing(this: Run) -> Iterator[dict[str, Edit]]:
    """The decisions, to be changed; then written whole, and named by the recipe."""
    source, target = _place(this)
    with disk_errors(target.parent, "create"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        decided = read_edits(source)
        yield decided
        with disk_errors(target, "write"):
            write_records(target, decided.values())
    named = target.relative_to(_project(this)).as_posix()
    if _recipe(this).curate.edits != named:
        recipe = _recipe(this, f"curate.edits={named}")
        write_atomic(this.folder / "recipe.yaml", recipe.to_yaml())


def _place(this: Run) -> tuple[Path, Path]:
    """The file that the decisions are in, and the one that they are written to.

    They are the same, but for a run whose recipe was copied from another one's: it goes on from
    that run's decisions in a file of its own.
    """
    project, config = _project(this), _recipe(this).curate
    if config.prepared:
        raise UsageError(
            f"The rows of {this.folder.name} come from feedback and an earlier run.",
            "Decide about feedback: potstill feedback RUN; or about the rows of the earlier run.",
        )
    own = project / FOLDER / f"{this.folder.name}.jsonl"
    if not config.edits:
        return own, own
    source = edits_file(config, project)
    return source, own if source.parent == own.parent else source


def _project(this: Run) -> Path:
    return this.project.resolve()


def _recipe(this: Run, *overrides: str) -> Recipe:
    return Recipe.load(str(this.folder / "recipe.yaml"), overrides)


def _read_by_curation(this: Run) -> dict[str, Edit]:
    try:
        curated = this.artifact("curate")
    except (StoreError, OSError, LookupError):
        return {}
    return read_edits(curated.path("edits.jsonl"))


def _whole(this: Run, beginning: str) -> str:
    """The row's id that begins so; ids may be shortened while they are unmistakable."""
    found = set()
    for _, row in rows_of(this):
        if row.id == beginning:
            return beginning
        if beginning and row.id.startswith(beginning):
            found.add(row.id)
    if len(found) == 1:
        return found.pop()
    if found:
        raise UsageError(f"{len(found)} rows begin with {beginning}.", "Write more of the id.")
    raise UsageError(
        f"The run {this.folder.name} has no row {beginning[:80]}.",
        f"See them with: potstill rows {this.folder.name}",
    )


def _check_passage(this: Run, chunk: str) -> None:
    if not chunk:
        return
    ingested = this.artifact("ingest")
    for name in ("chunks.jsonl", "contexts.jsonl"):
        path = ingested.path(name)
        if path.exists() and any(one.id == chunk for one in read_records(path, Chunk)):
            return
    raise UsageError(
        f"The run {this.folder.name} has no passage {chunk[:80]}.",
        "Rows name theirs: potstill rows RUN --json; without one the row stands alone.",
    )
