"""The commands that documentation shows, and whether the real command line knows them.

In: Markdown. Out: the `potstill …` commands in its blocks and its lines; what is wrong with one.
Runs nothing, and looks at no file that a command names.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from typer.main import get_command

from potstill.cli import app

START = re.compile(r"^(?:\$ )?(?:[!%] ?)?(?:\S*/)?potstill (?=[a-z-])")
SPAN = re.compile(r"`((?:\.venv/bin/)?potstill [^`]+)`")
FENCE = re.compile(r"^ *(?:```|~~~)(.*)$")


@dataclass(frozen=True)
class Shown:
    """A command, and whether it is written to be typed (a block) or spoken of (in a sentence)."""

    text: str
    typed: bool


def blocks(text: str) -> list[tuple[str, str]]:
    """(what the fence says, the block's text) of each block of code."""
    found: list[tuple[str, str]] = []
    lines: list[str] | None = None
    label, indent = "", 0
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence and lines is None:
            lines, label, indent = [], fence[1].strip(), len(line) - len(line.lstrip())
        elif fence and lines is not None:
            found.append((label, "\n".join(lines)))
            lines = None
        elif lines is not None:
            lines.append(line[indent:])
    return found


def commands(text: str) -> list[Shown]:
    """Every potstill command of a page."""
    found = []
    for label, block in blocks(text):
        if label in {"yaml", "json", "python", "toml"}:
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if START.match(line.strip()):
                found.append(Shown(line.strip(), typed=True))
    outside = re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.M | re.S)
    found += [Shown(" ".join(one.split()), typed=False) for one in SPAN.findall(outside)]
    return found


@cache
def _line() -> Any:
    return get_command(app)


def wrong(shown: Shown) -> str | None:
    """What the command line would not know of it, or nothing."""
    text = START.sub("", shown.text)
    if text == shown.text:
        return None
    for end in (" | ", " > ", " && ", " 2>", " &"):
        text = text.split(end)[0] if shown.typed else text
    words = shlex.split(text.replace("\\|", "|"), comments=True)
    command = _line()
    place = "potstill"
    while hasattr(command, "commands") and words:
        if words[0].startswith("-") or words[0].isupper():
            break
        names = words.pop(0).split("|")  # `keys add|list|revoke` names several
        unknown = [name for name in names if name not in command.commands]
        if unknown:
            return f"{place} has no command {unknown[0]}"
        place, command = f"{place} {names[0]}", command.commands[names[0]]
    known = {"--help"}
    for one in command.params:
        known |= {*getattr(one, "opts", ()), *getattr(one, "secondary_opts", ())}
    for word in words:
        for name in word.strip("[]").split("|"):
            if re.match(r"--?[a-z]", name) and name.split("=")[0] not in known:
                return f"{place} has no option {name}"
    return _not_parsed(command, place, words) if shown.typed else None


def _not_parsed(command: Any, place: str, words: list[str]) -> str | None:
    """What the parser itself says of the arguments. Values are not looked at."""
    import click

    if hasattr(command, "commands") or "…" in words or any(word.endswith("…") for word in words):
        return None
    context = command.context_class(command, info_name=place, resilient_parsing=True)
    try:
        values, rest, _ = command.make_parser(context).parse_args(args=list(words))
    except click.ClickException as problem:
        return f"{place}: {problem.format_message()}"
    if rest:
        return f"{place} does not take {rest[0]}"
    for one in command.params:
        if one.required and values.get(one.name) in (None, (), []):
            return f"{place} needs {one.name}"
    return None
