"""`potstill config`: look at a recipe before it runs.

In: a recipe on the command line. Out: YAML, JSON Schema or words on standard output. Knows nothing
of runs.
"""

from __future__ import annotations

import sys

import typer

from potstill.cli_options import RecipeArgument, SetOption, print_json

config_app = typer.Typer(help="Look at a recipe before it runs.", no_args_is_help=True)


@config_app.command("show")
def config_show(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Print a recipe with every default spelled out."""
    from potstill.recipe import Recipe

    sys.stdout.write(Recipe.load(recipe, set_ or ()).to_yaml())


@config_app.command("check")
def config_check(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Check a recipe; exit code 2 and one line if it is wrong."""
    from potstill.recipe import Recipe

    loaded = Recipe.load(recipe, set_ or ())
    sys.stdout.write(f"{loaded.name}: the recipe is valid.\n")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from potstill.recipe import recipe_schema

    print_json(recipe_schema())
