"""A project folder of one's own, begun from a built-in recipe.

    from potstill.project import new_project

    made = new_project("my-handbook", "quickstart")
    print(made.recipe)

In: a name, a built-in recipe. Out: a folder with the recipe's own commented text, its name and
sources put in, and a place for what goes in. Edits text, so that comments and order stay; starts
and fetches nothing. Knows nothing of what the stages do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from potstill.core.fields import nearest
from potstill.core.files import disk_errors, write_atomic
from potstill.errors import RecipeError, UsageError
from potstill.ingest.row_files import KINDS as ROW_KINDS
from potstill.ingest.sources import SAMPLE
from potstill.recipe import Recipe, builtin_recipes

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
DOCUMENTS = "documents"
IGNORED = "# Results that Potstill makes again from the recipe and the documents.\nstore/\nruns/\n"
OF_DOCUMENTS = """\
Put the documents into `documents/`, in folders of any depth: PDF (scanned ones too), DOCX, PPTX,
HTML, EPUB, Markdown, text, pictures."""
OF_ROWS = """\
Put the rows beside this file, as `{source}`: a question and an answer a row. CSV, JSON Lines,
Parquet and SQuAD are read; `ingest.rows.columns` says where columns have names of their own."""
README = """# {name}

A student distilled by Potstill, begun from the built-in recipe {recipe}.

{places}

    potstill plan recipe.yaml       what a run would do, need and download
    potstill run recipe.yaml        run it; the same command goes on, or reuses what is finished
    potstill chat {name}{space}talk to the student

`recipe.yaml` says everything about a run; `potstill config schema` describes every field. Results
are in `runs/` and `store/`, which git leaves out.
"""


@dataclass(frozen=True)
class Project:
    """What was made. sources: where the user's files go, as the recipe names them."""

    folder: Path
    recipe: Path
    sources: tuple[str, ...]


def new_project(name: str, recipe: str, project: Path | None = None) -> Project:
    """Make the folder `name` below `project` [here], from the built-in recipe of that name.

    Errors: UsageError for a name that is none, or a folder that holds something; RecipeError for an
    unknown recipe, with the nearest name; StoreError for the disk.
    """
    if not NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:64]
        raise UsageError(
            f"{name!r} cannot be the name of a project and its run: lower-case letters, digits, "
            "- and _, and a letter or digit first.",
            f"For example: {near}" if NAME.fullmatch(near) else "",
        )
    known = builtin_recipes()
    if recipe not in known:
        hint = nearest(recipe, known) or f"Built-in recipes: {', '.join(known)}."
        raise RecipeError(f"There is no built-in recipe {recipe}.", hint)
    begun, old = known[recipe], Recipe.load(recipe)
    folder = (project or Path.cwd()) / name
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"{folder} exists already, and is not empty.", "Choose another name, or move it away."
        )
    sources = tuple(dict.fromkeys(_own(source) for source in old.ingest.sources))
    text = _edited(begun.read_text("utf-8"), old, name, sources)
    with disk_errors(folder, "write to"):
        folder.mkdir(parents=True, exist_ok=True)
        if DOCUMENTS in sources:
            (folder / DOCUMENTS).mkdir()
            write_atomic(folder / DOCUMENTS / ".gitkeep", "")
        write_atomic(folder / ".gitignore", IGNORED)
        write_atomic(folder / "README.md", _readme(name, old.name, sources))
        write_atomic(folder / "recipe.yaml", text)
    return Project(folder, folder / "recipe.yaml", sources)


def _own(source: str) -> str:
    """Where the user's files go instead of a source of the built-in recipe."""
    file = Path(source.removeprefix(SAMPLE))
    if file.suffix.lower() not in ROW_KINDS:
        return DOCUMENTS
    return f"rows{file.suffix}" if source.startswith(SAMPLE) else source


def _edited(text: str, old: Recipe, name: str, sources: tuple[str, ...]) -> str:
    """The recipe's text with the name and the sources put in, and its commands for this project."""
    named = _node(text, ("name",))
    text = f"{text[: named.start_mark.index]}{name}{text[named.end_mark.index :]}"
    given = _node(text, ("ingest", "sources"))
    # A block list ends where the next thing begins; its last entry ends where it ends.
    assert isinstance(given, yaml.SequenceNode)
    end = given.end_mark if given.flow_style else given.value[-1].end_mark
    was = ", ".join(old.ingest.sources)
    put = f"[{', '.join(sources)}]"
    note = "" if sources == tuple(old.ingest.sources) else f"  # {old.name} itself has: {was}"
    rest = text[end.index :]
    if rest.split("\n", 1)[0].strip():  # a comment of its own on that line
        note = ""
    text = f"{text[: given.start_mark.index]}{put}{note}{rest}"
    return "\n".join(_command(line, old.name, name) for line in text.split("\n"))


def _node(text: str, place: tuple[str, ...]) -> yaml.Node:
    """The value at `place` in a recipe that was validated, so it is there."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in place:
        assert isinstance(node, yaml.MappingNode)
        node = next(value for name, value in node.value if name.value == key)
    assert node is not None
    return node


def _command(line: str, old: str, name: str) -> str:
    """A comment's command for the built-in recipe as it is called in the project; what explains it
    stays in its column where there is room."""
    if not line.lstrip().startswith("#"):
        return line

    def called(found: re.Match[str]) -> str:
        new = f"potstill {found[1]} {name if found[1] == 'chat' else 'recipe.yaml'}"
        gap = len(found[2]) and max(2, len(found[0]) - len(new))
        return new + " " * gap

    return re.sub(rf"potstill (run|plan|config show|chat) {old}(?![\w-])( {{2,}}|)", called, line)


def _readme(name: str, recipe: str, sources: tuple[str, ...]) -> str:
    places = [
        OF_DOCUMENTS if source == DOCUMENTS else OF_ROWS.format(source=source) for source in sources
    ]
    space = " " * max(1, 18 - len(name))
    return README.format(name=name, recipe=recipe, places="\n\n".join(places), space=space)
