"""`potstill recipes` and `potstill new`: what there is to begin with, and how to begin.

In: names on the command line. Out: words or JSON on standard output, a project folder. Knows
nothing of runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli_options import JsonOption, ProjectOption, out, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.builtin import Described


def recipes_command(
    name: Annotated[
        str | None, typer.Argument(help="A built-in recipe's name, or a recipe file, for more.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List the built-in recipes: what each gives, and what it needs. Fetches nothing."""
    from potstill.builtin import describe, recipes

    if name is not None:
        found = describe(name, project)
        if as_json:
            print_json(found.as_dict())
        else:
            _show(found, out())
            _show_more(found, out())
        return
    everything = recipes(project)
    if as_json:
        print_json([one.as_dict() for one in everything])
        return
    console = out()
    for one in everything:
        _show(one, console)
        console.print()
    console.print("More of one: potstill recipes NAME", highlight=False)


def _show(one: Described, console: Console) -> None:
    from rich.markup import escape

    from potstill.core.machine import most_memory_bytes
    from potstill.display import duration, parameters, size

    student = one.student or "cut from the teacher"
    pair = f"{one.teacher} ({parameters(one.teacher_parameters)}) -> "
    pair += f"{student} ({parameters(one.student_parameters)})"
    fetched = size(one.download_bytes) if one.download_bytes else "no"
    have = most_memory_bytes()
    short = f" (this machine has {size(have)})" if have and have < one.memory_bytes else ""
    needs = f"{size(one.memory_bytes)} of memory{short}, {size(one.disk_bytes)} of disk, "
    needs += f"{fetched} download"
    took = f"{duration(one.seconds)} on {one.times_are_for}"
    took += f", for {one.assumes}" if one.assumes else ""
    lines = {
        "gives": one.gives,
        "models": pair,
        "needs": needs,
        "GPU": f"advised: {one.gpu}" if one.gpu else "not needed",
        "time": f"about {took}",
        "terms": "; ".join(one.terms) or "none",
    }
    console.print(f"[bold]{escape(one.name)}[/]  {escape(one.description)}", highlight=False)
    for label, words in lines.items():
        console.print(f"  {label:<8}{escape(words)}", highlight=False, soft_wrap=True)


def _show_more(one: Described, console: Console) -> None:
    from potstill.display import models_table

    console.print(f"  {'from':<8}{', '.join(one.sources)}", highlight=False, markup=False)
    console.print()
    console.print(models_table(one.models))
    console.print()
    width = max(len(command) for _, command in one.commands)
    for does, command in one.commands:
        console.print(f"{command:<{width}}   {does}", highlight=False, markup=False)


def new_command(
    name: Annotated[str, typer.Argument(help="Name of the new folder, and of its run.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help="The built-in recipe to begin from.")
    ] = "quickstart",
    project: Annotated[
        Path | None, typer.Option("--project", help="Folder to make it in [default: here].")
    ] = None,
) -> None:
    """Make a project folder: a built-in recipe's commented text, and a place for your files."""
    from potstill.project import DOCUMENTS, new_project

    made = new_project(name, recipe, project)
    folder = made.folder if project else Path(name)
    lines = [("Made", f"{folder}, from the built-in recipe {recipe}")]
    for source in made.sources:
        what = "your documents into" if source == DOCUMENTS else "your rows as"
        lines.append(("Put", f"{what} {folder / source}"))
    lines += [
        ("Look", f"cd {folder} && potstill plan recipe.yaml"),
        ("Run", "potstill run recipe.yaml"),
    ]
    console = out()
    for label, words in lines:
        console.print(f"{label:<6} {words}", highlight=False, markup=False, soft_wrap=True)
