"""`potstill adapters`: look at an adapter, merge adapters into their base.

In: folders on the command line. Out: words or JSON on standard output, a model's folder. Knows
nothing of runs or recipes; heavy packages are imported when a command needs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli_options import JsonOption, print_json
from potstill.errors import UsageError

adapters_app = typer.Typer(help="Look at adapters and merge them.", no_args_is_help=True)

TEXT = "The quick brown fox jumps over the lazy dog. 1, 2, 3: what comes next, and why?"
"""On which a merge is proved."""


@adapters_app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Say what an adapter is and which base it belongs to. Loads no weights."""
    from potstill.models.adapter_files import describe, read_adapter

    found = describe(read_adapter(folder))
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        sys.stdout.write(f"{name:<{width}}  {'unknown' if shown is None else shown}\n")


@adapters_app.command("merge")
def merge(
    base: Annotated[str, typer.Argument(help="The base: a folder, a hub id or another reference.")],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT]...",
            help="Adapters' folders, each with its weight [default: 1].",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged model.")],
) -> None:
    """Merge one or more adapters of a base into it: W + sum of WEIGHT times each one's update."""
    from potstill.models.adapter_sets import merge_folders

    weights: dict[Path, float] = {}
    for text in adapters:
        folder, weight = parse_weighted(text)
        if folder in weights:
            raise UsageError(f"The adapter {folder} is named twice.", "Add up its weights.")
        weights[folder] = weight
    merge_folders(base, weights, output, TEXT)
    sys.stdout.write(f"{output}\n")


def parse_weighted(text: str) -> tuple[Path, float]:
    """`folder` or `folder:weight`. Errors: UsageError for a weight that is no finite number."""
    folder, colon, said = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        weight = float(said)
    except ValueError:
        weight = float("nan")
    if not folder or not abs(weight) < float("inf"):
        raise UsageError(
            f"{said!r} in {text!r} is no weight.", "Write FOLDER:WEIGHT, such as adapters/a:0.5."
        )
    return Path(folder), weight
