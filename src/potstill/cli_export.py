"""`potstill export` and `potstill push`: choose or make a file of a run's student; send them.

In: a run, a target. Out: a table and a path on standard output; what was sent. Heavy packages are
imported when a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, err, out, print_json
from potstill.errors import ModelError, UsageError


def export(
    run_name: RunArgument,
    kinds: Annotated[
        str | None,
        typer.Option(help="Make these files too, such as q8_0,q6_k; `all` for every kind."),
    ] = None,
    fits: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The file may have this size: 100MB.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Serving it may take this much: 400MB."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.01, metavar="N", help="It must write N tokens a second on this machine."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use.")] = None,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Show a run's exported files with what each lost, and the one to take; make others.

    With a target, the best file within it; kinds that could be within it are made first. Every
    new file passes the same gate as the others.
    """
    from potstill.export import choose
    from potstill.pipeline import open_run

    target = choose.Target(
        choose.parse_size(fits) if fits else None,
        choose.parse_size(memory) if memory else None,
        speed,
    )
    this = open_run(run_name, project)
    found = _exported(this)
    if this.task == "spans":
        if kinds or target.given:
            raise UsageError(
                f"The student of {this.folder.name} marks answers: its files are safetensors and "
                "ONNX, and all of them are made.",
                "Leave out --kinds, --fits, --memory and --speed.",
            )
        _show_spans(found, this.folder / "export", as_json)
        return
    named = parse_kinds(kinds) if kinds else ()
    wanted = named
    if target.given and not wanted:
        weights = next(iter(found["models"].values()))["parameters"]
        wanted = tuple(choose.worth_making(weights, target))
    if missing := [kind for kind in wanted if kind not in _tried(found)]:
        found = _made(this, missing, threads)
    if target.given:
        key = choose.chosen(found["models"], target)
        why = "the nearest to the student within the target"
    else:
        key, why = found["recommended"]["model"], found["recommended"]["why"]
    path = this.folder / "export" / found["models"][key]["file"]
    if as_json:
        print_json({"chosen": {"model": key, "path": str(path), "why": why}, **found})
    else:
        _show(found, path, why)
    _refuse(named, found)


def parse_kinds(text: str) -> tuple[str, ...]:
    """`q8_0,Q6_K` or `all`. Errors: UsageError names the kinds that there are."""
    from potstill.export.choose import KINDS

    names = tuple(dict.fromkeys(one.strip().lower() for one in text.split(",") if one.strip()))
    if names == ("all",):
        return KINDS
    if not names:
        raise UsageError(f"{text!r} names no kind.", f"There are {', '.join(KINDS)}.")
    if unknown := [name for name in names if name not in KINDS]:
        raise UsageError(
            f"There is no kind {', '.join(unknown)}.", f"There are {', '.join(KINDS)}."
        )
    return names


def _show(found: dict[str, Any], path: Path, why: str) -> None:
    from potstill import display
    from potstill.export import choose

    console = out()
    console.print(display.table(choose.TITLES, choose.rows(found["models"])))
    console.print("\nKL (nats a token) and agreement are to the PyTorch student.", highlight=False)
    for one in found["left_out"]:
        console.print(f"Left out: {one['why']}", highlight=False, soft_wrap=True)
    console.print(f"Take {path}: {why}.", highlight=False, soft_wrap=True)


def _show_spans(found: dict[str, Any], folder: Path, as_json: bool) -> None:
    """The ONNX files of a student that marks answers, and the one to take."""
    from potstill import display
    from potstill.export import choose

    best = found["recommended"]
    if as_json:
        chosen = {**best, "path": str(folder / best["file"])}
        print_json({"chosen": chosen, **found})
        return
    rows = [
        (
            model["file"],
            choose.size(model["disk_bytes"]),
            choose.size(model["peak_memory_bytes"]),
            f"{model['questions_per_second']:.1f}",
            f"{model['metrics']['em']['value']:.1%}",
            f"{model['metrics']['f1']['value']:.1%}",
        )
        for model in found["models"].values()
    ]
    console = out()
    console.print(display.table(("file", "disk", "memory", "questions/s", "EM", "F1"), rows))
    console.print(f"Take {folder / best['file']}: {best['why']}.", highlight=False, soft_wrap=True)


def _exported(this: Any) -> dict[str, Any]:
    from potstill.core.files import read_json

    found: dict[str, Any] = read_json(this.artifact("export").path("export.json"))
    return {"left_out": [], **found}  # a run of an earlier Potstill has no such list


def _tried(found: dict[str, Any]) -> set[str]:
    """Kinds that are there, or were made and lost more than they may."""
    there = {key.removeprefix("gguf-") for key in found["models"]}
    return there | {one["kind"] for one in found["left_out"]}


def _refuse(named: tuple[str, ...], found: dict[str, Any]) -> None:
    """Errors: ModelError if a kind that was asked for by its name had to be left out."""
    from potstill.export.choose import KINDS

    for one in found["left_out"] if named != KINDS else ():
        if one["kind"] in named:
            raise ModelError(one["why"], "Take a kind with more bits, or raise its bounds.")


def _made(this: Any, missing: list[str], threads: int | None) -> dict[str, Any]:
    """The run's export again with these kinds beside the ones that it has; all else is reused.

    They are candidates: one that loses more than it may is left out, and costs the run nothing.
    """
    from potstill import display, pipeline
    from potstill.recipe import Recipe

    file = this.folder / "recipe.yaml"
    kinds = (*Recipe.load(file).export.candidates, *missing)
    recipe = Recipe.load(file, [f"export.candidates=[{', '.join(kinds)}]"])
    console = err()
    console.print(f"Making {', '.join(missing)}; finished stages are reused.", highlight=False)
    with display.following(console) as shown:
        finished = pipeline.run(
            recipe,
            this.project,
            threads=threads,
            watch=shown,
            folder=this.folder,
        )
    return _exported(finished)


def push(
    run_name: RunArgument,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where to.")],
    yes: Annotated[bool, typer.Option("--yes", help="Send; else only say what would be.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Everyone may read it [default: you alone].")
    ] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Send a run's exported files to a Hugging Face repository of yours; shows them first.

    Your own login is used: `hf auth login`, or HF_TOKEN.
    """
    from potstill.export.choose import size
    from potstill.export.push import packed, send
    from potstill.pipeline import open_run

    this = open_run(run_name, project)
    this.artifact("export")  # so that an unfinished run is one clear line
    parcel = packed(this.folder / "export", repository, public=public)
    if as_json:
        print_json({**parcel.as_dict(), "sent": send(parcel) if yes else None})
        return
    console = out()
    for path, count in parcel.files:
        console.print(f"{size(count):>10}  {path}", highlight=False, markup=False)
    who = "private: you alone can read it" if parcel.private else "public: everyone can read it"
    console.print(
        f"{size(parcel.bytes):>10}  {len(parcel.files)} files to {parcel.repository} ({who})",
        highlight=False,
        markup=False,
    )
    if yes:
        sys.stdout.write(f"{send(parcel)}\n")
    else:
        console.print("Nothing was sent. Add --yes to send it.", highlight=False)
