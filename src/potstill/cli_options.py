"""What the commands share: their common options, and where they write.

In: nothing. Out: annotated types for typer, consoles. Knows no command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a built-in recipe's name.")]
RunArgument = Annotated[str, typer.Argument(help="A run's name or folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field: --set distill.epochs=3"),
]
ProjectOption = Annotated[
    Path | None,
    typer.Option("--project", help="Folder with documents, runs/ and store/ [default: here]."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Folder for finished results, or an address that they are mirrored to: "
        "s3://bucket/prefix [default: $POTSTILL_STORE, else the recipe's].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def err() -> Console:
    """Standard error: progress, warnings, mistakes."""
    return Console(stderr=True)


def out() -> Console:
    """Standard output: results."""
    return Console(soft_wrap=not sys.stdout.isatty())


def print_json(value: Any) -> None:
    """A result for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
