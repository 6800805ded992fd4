"""The command `rows`: the rows of a run, and what a person decides about them.

In: a run's name, ids of rows. Out: a table of rows, or a decision in the project's file of them.
Thin: the work is `editing.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, err, out, print_json

Ids = list[str] | None
SHOWN = 60


def rows_command(
    run_name: RunArgument,
    accept: Annotated[
        Ids, typer.Option("--accept", metavar="ID", help="Keep a row that was set aside.")
    ] = None,
    reject: Annotated[Ids, typer.Option("--reject", metavar="ID", help="Set a row aside.")] = None,
    edit: Annotated[
        str | None,
        typer.Option("--edit", metavar="ID", help="Change its --question, --answer or both."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Write a row: --question, --answer, and its --chunk.")
    ] = False,
    take_back: Annotated[
        Ids, typer.Option("--take-back", metavar="ID", help="Forget what was decided about it.")
    ] = None,
    question: Annotated[str, typer.Option(help="For --edit and --add.")] = "",
    answer: Annotated[str, typer.Option(help="For --edit and --add.")] = "",
    chunk: Annotated[
        str, typer.Option(help="For --add: id of the passage that it is asked about.")
    ] = "",
    note: Annotated[str, typer.Option(help="Why; it is kept with the decision.")] = "",
    split: Annotated[
        str | None, typer.Option(help="List train, validation, test or rejected alone.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List a run's rows, or reject, accept, edit and add some; the next run learns from that."""
    from potstill import editing
    from potstill.errors import UsageError
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    asked = bool(accept) + bool(reject) + (edit is not None) + add + bool(take_back)
    if asked > 1:
        raise UsageError("One kind of decision at a time.", "Call it once for each.")
    if not asked:
        if question or answer or chunk or note:
            raise UsageError("Which row?", "Add --edit ID or --add.")
        _list(this, split, as_json)
        return
    if (question or answer) and not (add or edit is not None):
        raise UsageError("--question and --answer belong to --edit and --add.")
    for one in accept or ():
        editing.decide(this, one, "accept", note=note)
    for one in reject or ():
        editing.decide(this, one, "reject", note=note)
    for one in take_back or ():
        editing.take_back(this, one)
    if edit is not None:
        editing.decide(this, edit, "edit", question=question, answer=answer, note=note)
    if add:
        made = editing.decide(
            this, "", "add", question=question, answer=answer, chunk=chunk, note=note
        )
        err().print(f"Added    {made.id}", highlight=False)
    if as_json:
        print_json([one.model_dump(mode="json") for one in editing.edits_of(this).values()])
        return
    left = editing.waiting(this)
    err().print(
        f"{left} decision{'s' if left != 1 else ''} wait for the next run: "
        f"potstill run {_shown(this.folder / 'recipe.yaml')}",
        highlight=False,
        soft_wrap=True,
    )


def _shown(path: Path) -> Path:
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def _list(this: Any, split: str | None, as_json: bool) -> None:
    from potstill import display, editing
    from potstill.errors import UsageError
    from potstill.records import Rejected

    if split not in (None, "train", "validation", "test", "rejected"):
        raise UsageError(
            f"There is no part {split}.", "There are train, validation, test and rejected."
        )
    found = [(part, row) for part, row in editing.rows_of(this) if split in (None, part)]
    decided = editing.edits_of(this)
    if as_json:
        print_json(
            [
                {"part": part, "decided": decided[row.id].action if row.id in decided else ""}
                | row.model_dump(mode="json")
                for part, row in found
            ]
        )
        return
    table = []
    for part, row in found:
        inner = row.row if isinstance(row, Rejected) else row.model_dump()
        answers = inner.get("answers") or ("",)
        table.append(
            [
                row.id,
                row.reason if isinstance(row, Rejected) else part,
                str(inner.get("question", ""))[:SHOWN],
                str(answers[0])[:SHOWN],
                decided[row.id].action if row.id in decided else "",
            ]
        )
    out().print(display.table(("row", "part", "question", "answer", "decided"), table))
