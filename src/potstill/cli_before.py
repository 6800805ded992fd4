"""`potstill recipes`, `new` and `plan`: what there is to begin with, and what it would take.

In: names and recipes on the command line. Out: words or JSON on standard output, a project folder.
Starts no run and fetches nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli_options import (
    JsonOption,
    ProjectOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    out,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.builtin import Described
    from potstill.recipe import Recipe


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A built-in recipe's name, or a recipe file, for more.")
    ] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """List the built-in recipes: what each gives, and what it needs. Fetches nothing."""
    from potstill import builtin

    if name is not None:
        found = builtin.describe(name, project)
        if as_json:
            print_json(found.as_dict())
        else:
            _show(found, out())
            _show_more(found, out())
        return
    everything = builtin.recipes(project)
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
    from potstill.display import models_table, terms_lines

    console.print(f"  {'from':<8}{', '.join(one.sources)}", highlight=False, markup=False)
    console.print()
    console.print(models_table(one.models))
    for line in terms_lines(one.models):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    width = max(len(command) for _, command in one.commands)
    for does, command in one.commands:
        console.print(f"{command:<{width}}   {does}", highlight=False, markup=False)


def new(
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


def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    ask_teacher: Annotated[
        bool,
        typer.Option(
            "--ask", help="Ask a teacher behind an address once with each key, and do no more."
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Say instead what every stage would take there, and what binds: 8xH100, "
            "2x8xA100-80GB, cpu."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Say what a run would do now, why, what it would cost, which models it would download, and
    what stands in its way. Starts and fetches nothing."""
    from rich.markup import escape

    from potstill import display, pipeline
    from potstill.outlook import this_processor
    from potstill.recipe import Recipe

    loaded = Recipe.load(recipe, set_ or ())
    if ask_teacher:
        _ask_teacher(loaded, as_json)
        return
    found = pipeline.plan(loaded, project, cluster=cluster, store=store)
    if as_json:
        print_json(found.as_dict())
        return
    console = out()
    if found.cluster is not None:
        from potstill.display_cluster import show

        show(found.cluster, found.assumes, console)
        return
    console.print(display.plan_table(found))
    if any(step.estimate for step in found):
        assumed = f", and for {found.assumes}, as the files are not there yet" * bool(found.assumes)
        console.print(
            f"\nExpected, about, on {this_processor()}{assumed}; times are corrected by what a "
            "stage took here the last time.",
            highlight=False,
        )
    if found.downloads:
        console.print("\nDownloads:", highlight=False)
        console.print(display.models_table(found.downloads))
        for line in display.terms_lines(found.downloads):
            console.print(escape(line), highlight=False, soft_wrap=True)
    if found.obstacles:
        console.print("\nIn the way of a run:", highlight=False)
    for obstacle in found.obstacles:
        console.print(escape(f"  {obstacle}"), highlight=False, soft_wrap=True)
    for shortage in found.tight:
        console.print(escape(f"\nTight: {shortage.message}"), highlight=False, soft_wrap=True)
    if advice := [one for step in found for one in step.advice]:
        console.print("\nFor this machine and these rows:", highlight=False)
        console.print(display.advice_table(advice))


def _ask_teacher(recipe: Recipe, as_json: bool) -> None:
    from dataclasses import asdict

    from potstill.errors import UnavailableError
    from potstill.inference.probe import probe

    found = probe(recipe.generate.teacher, recipe.generate.endpoint)
    if as_json:
        print_json([asdict(one) for one in found])
    for one in () if as_json else found:
        words = f"{one.problem} {one.hint}" if one.problem else f"answers in {one.seconds:.1f} s"
        out().print(f"{one.variable or 'no key':<20} {words}", highlight=False, markup=False)
    if all(one.problem for one in found):
        raise UnavailableError("The teacher does not answer.", "What it said stands above.")
