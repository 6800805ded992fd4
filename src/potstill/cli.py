"""The command line: thin commands over the Python API.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed,
2 usage or recipe, 3 documents, 4 models, 5 store or disk, 6 missing package, 7 training, 8 budget,
9 too small a machine, 130 stopped by Ctrl-C. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from potstill import __version__
from potstill.cli_adapters import adapters_app
from potstill.cli_ask import ask
from potstill.cli_before import new, plan, recipes
from potstill.cli_config import config_app
from potstill.cli_disagree import disagree
from potstill.cli_drift import drift
from potstill.cli_evaluate import compare_command, eval_command
from potstill.cli_export import export, push
from potstill.cli_improve import ab, improve, promote, rollback, versions
from potstill.cli_monitoring import monitoring
from potstill.cli_options import (
    JsonOption,
    ProjectOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    StoreOption,
    err,
    out,
    print_json,
)
from potstill.cli_plugins import plugins
from potstill.cli_rows import rows_command
from potstill.cli_serve import feedback, keys_app, serve
from potstill.cli_studio import studio
from potstill.errors import PotstillError, StoreError, UsageError

STOPPED = 130  # what typer makes of Ctrl-C, without a word
app = typer.Typer(
    name="potstill",
    help="Distil a large language model into a small one that knows your documents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")
app.add_typer(adapters_app, name="adapters")
app.command()(recipes)
app.command()(new)
app.command()(plan)
app.command("eval")(eval_command)
app.command("compare")(compare_command)
app.command()(ask)
app.command()(export)
app.command()(push)
app.command()(serve)
app.command()(feedback)
app.command()(monitoring)
app.command()(drift)
app.command()(disagree)
app.command()(improve)
app.command()(promote)
app.command()(rollback)
app.command()(versions)
app.command()(ab)
app.command("rows")(rows_command)
app.command()(studio)
app.command()(plugins)
app.add_typer(keys_app, name="keys")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"potstill {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Distil a large language model into a small one that knows your documents."""


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Processor threads to use; with --on, of each worker."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run though memory or disk look too small.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Let workers read and ask: ray for this machine's cores, or ray://HOST:PORT.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --on: the most workers at once.")
    ] = None,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="With --on: the project folder has this path on them too."),
    ] = False,
    again: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Run this finished stage once more, and all after it."),
    ] = None,
    store: StoreOption = None,
    project: ProjectOption = None,
) -> None:
    """Run a recipe; the same command again goes on, or reuses what is finished."""
    from potstill import display, pipeline
    from potstill.recipe import Recipe

    console = err()
    loaded = Recipe.load(recipe, set_ or ())
    with display.following(console) as shown:
        finished = pipeline.run(
            loaded,
            project,
            until=until,
            threads=threads,
            watch=shown,
            anyway=anyway,
            on=on,
            workers=workers,
            shared=shared,
            again=again,
            store=store,
        )
    if (until or pipeline.PIPELINE[-1].name) != pipeline.PIPELINE[-1].name:
        console.print(f"Stopped after {until}, as asked. Results: {finished.folder}")
        return
    _show_report(finished.report, finished.folder)


def _show_report(report: dict[str, Any], folder: Path) -> None:
    from potstill import display
    from potstill.evaluate import comparison

    console = out()
    for header, *rows in (comparison.quality(report), comparison.sizes(report)):
        console.print()
        console.print(display.table(header, rows))
    spent = [
        (
            name,
            "reused" if stage.get("reused") else display.duration(stage["seconds"]),
            display.size(stage["peak_memory_bytes"]),
        )
        for name, stage in report["stages"].items()
    ]
    console.print()
    console.print(display.table(("where the time went", "time", "peak memory"), spent))
    console.print()
    name = _shown(folder)
    console.print(f"Report   {name / 'report.html'}", highlight=False)
    spans = report.get("task") == "spans"
    talk = (
        f'Ask      {_command()} ask {name} "…"' if spans else f"Chat     {_command()} chat {name}"
    )
    console.print(talk, highlight=False)


def _command() -> str:
    """How this program is called from here: by its name if the shell finds it, else by its path."""
    import shutil

    own = Path(sys.argv[0])
    found = shutil.which("potstill")
    if own.name != "potstill" or not own.exists() or (found and Path(found).samefile(own)):
        return "potstill"
    return str(_shown(own))


def _shown(folder: Path) -> Path:
    try:
        return folder.resolve().relative_to(Path.cwd())
    except ValueError:
        return folder


@app.command()
def tune(
    study: Annotated[str, typer.Argument(help="A study file, or a built-in study's name.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, if not as many as the study says.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Longest time of this sitting, if not the study's.")
    ] = None,
    only_report: Annotated[
        bool, typer.Option("--report", help="Write the page and the best recipes anew; no trial.")
    ] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Search for a recipe's best values; the same command again goes on."""
    from potstill.tune import Study, read_study, run_study
    from potstill.tune.display import searching, trials_table

    console = err()
    loaded = Study.load(study, trials=trials, minutes=minutes)
    if only_report:
        found = read_study(loaded, project)
    else:
        with searching(console, loaded) as shown:
            found = run_study(loaded, project, watch=shown)
    if as_json:
        print_json(found.as_dict())
        return
    console = out()
    console.print(trials_table(loaded, found))
    console.print()
    for path in found.recipes:
        console.print(f"Run      {_command()} run {_shown(path)}", highlight=False)
    console.print(f"Report   {_shown(found.folder / 'report.html')}", highlight=False)
    if not found.complete:
        console.print("The same command goes on with the trials that are left.", highlight=False)


@app.command()
def chat(
    run_name: RunArgument,
    question: Annotated[
        str | None, typer.Argument(help="Ask this one question and stop; else a conversation.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Which exported GGUF file, by name [default: the smallest]."),
    ] = None,
    passages: Annotated[
        bool,
        typer.Option(help="Look the question up in the run's documents first."),
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use.")] = None,
    project: ProjectOption = None,
) -> None:
    """Talk to the student of a finished run, in the terminal."""
    from potstill.core.files import read_records
    from potstill.generate import PromptConfig, student_turn
    from potstill.pipeline import open_run
    from potstill.records import Chunk
    from potstill.serve.chat import converse

    this = open_run(run_name, project)
    if this.task == "spans":
        raise UsageError(
            f"The student of {this.folder.name} marks answers and writes none.",
            f'Ask it with: potstill ask {this.folder} "…"',
        )
    prompt = PromptConfig.model_validate(this.record["recipe"]["generate"]["prompt"])
    chunks = read_records(this.artifact("ingest").path("chunks.jsonl"), Chunk) if passages else ()
    converse(
        this.exported(file),
        chunks,
        lambda passage, asked: student_turn(prompt, passage, asked),
        question=question,
        threads=threads,
    )


@app.command()
def report(
    run_name: RunArgument,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Write a finished run's report again and print its table."""
    from potstill import pipeline

    this = pipeline.open_run(run_name, project)
    made = pipeline.write_report(this)
    if as_json:
        print_json(made)
    else:
        _show_report(made, this.folder)


@app.command()
def verify(
    run_name: RunArgument, as_json: JsonOption = False, project: ProjectOption = None
) -> None:
    """Rehash every stored result of a run; exit code 5 if one has changed."""
    from potstill import pipeline

    this = pipeline.open_run(run_name, project)
    found = pipeline.verify(this)
    if as_json:
        print_json(found)
    else:
        for name, problems in found.items():
            sys.stdout.write(f"{name:<9} {'; '.join(problems) or 'ok'}\n")
    if any(found.values()):
        names = ", ".join(name for name, problems in found.items() if problems)
        raise StoreError(
            f"Stored results have changed or are gone: {names}.",
            "Delete what is named above and run the recipe again.",
        )
    if not found:
        raise StoreError(f"The run {run_name} has no finished stage.", "Run its recipe first.")


@app.command()
def doctor(as_json: JsonOption = False, project: ProjectOption = None) -> None:
    """Say what this machine can do, and how to install what is missing."""
    from dataclasses import asdict

    from potstill.doctor import examine

    findings = examine((project or Path.cwd()).resolve())
    if as_json:
        print_json([asdict(one) for one in findings])
    else:
        console = out()
        marks = {
            "ok": "[green]ok     [/]",
            "missing": "[red]missing[/]",
            "note": "[yellow]note   [/]",
        }
        for one in findings:
            console.print(
                f"{marks[one.state]} [bold]{_plain(f'{one.name:<15}')}[/] {_plain(one.text)}",
                highlight=False,
                soft_wrap=True,
            )
            if one.remedy:
                console.print(
                    f"{'':<24} {one.remedy}", highlight=False, markup=False, soft_wrap=True
                )
    if any(one.state == "missing" for one in findings):
        raise typer.Exit(6)


def main() -> None:
    """Entry point of the `potstill` command: foreseen errors become one line and an exit code."""
    try:
        app()
    except PotstillError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        from potstill.core.extras import missing

        found = missing(error, "This command")
        if found is None:
            raise
        _fail(found)
    except SystemExit as end:
        if end.code == STOPPED:
            err().print("Stopped. The same command goes on from here.", highlight=False)
        raise


def _fail(error: PotstillError) -> NoReturn:
    console = err()
    console.print(f"[bold red]Error:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
    if error.hint:
        console.print(_plain(error.hint), highlight=False, soft_wrap=True)
    sys.exit(error.exit_code)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
