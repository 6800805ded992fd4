"""`potstill plugins`: what other packages add.

In: nothing, or --check. Out: words or JSON on standard output. Imports no plug-in but with --check.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from potstill.cli_options import JsonOption, out, print_json


def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import each, and say what is wrong with it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the installed plug-ins, and the recipe's field that names each kind."""
    from potstill.plugins import POINTS, installed, problem_of

    found = [(one, problem_of(one) if check else "") for one in installed()]
    if as_json:
        print_json([asdict(one) | ({"problem": wrong} if check else {}) for one, wrong in found])
    else:
        console = out()
        for group, (field, _) in POINTS.items():
            console.print(f"{group} (a recipe's {field})", highlight=False, markup=False)
            here = [(one, wrong) for one, wrong in found if one.group == group]
            for one, wrong in here:
                console.print(f"  {one}  {wrong}".rstrip(), highlight=False, markup=False)
            if not here:
                console.print("  none", highlight=False, markup=False)
    if any(wrong for _, wrong in found):
        raise typer.Exit(6)
