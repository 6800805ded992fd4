"""Readers of file kinds that Potstill does not read, by plug-ins (`potstill.readers`).

In: an IngestConfig, a path. Out: a `Reading`, as from a reader of ours. Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.core.plugins import Loaded, described, installed, load, options_of
from potstill.errors import PluginError, PotstillError, RecipeError
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import PageText, Reading, UnusableError

GROUP = "potstill.readers"
NEEDS = ("suffixes", "content", "make")
Read = Callable[[Path], Reading]


class ReaderPlugin(Protocol):
    """What an entry point of `potstill.readers` names. It runs in the process that is watched for
    time and memory, as the readers of ours do."""

    version: str
    """Raise it when files would be read differently: the stage then runs again."""
    suffixes: Sequence[str]
    """Of the files that it reads, such as (".srt",); none that Potstill reads itself."""
    content: Sequence[str]
    """What the first bytes of such a file may say it is, in the words of
    `potstill.ingest.readers.what_is`: "text", "a zip archive", "binary data" ..."""

    def make(self, options: Mapping[str, Any]) -> Read:
        """A function from a path to a `Reading`; it raises UnusableError for a bad file.

        Errors: ValueError for options that it does not take.
        """
        ...


@dataclass(frozen=True)
class PluginReader:
    """A reader that the recipe names, with its options."""

    loaded: Loaded
    read_path: Read

    @property
    def suffixes(self) -> tuple[str, ...]:
        """In lower case, each with its dot."""
        return tuple(str(one).lower() for one in self.loaded.object.suffixes)

    @property
    def content(self) -> tuple[str, ...]:
        """What its files' first bytes may say."""
        return tuple(self.loaded.object.content)

    def read(self, path: Path) -> Reading:
        """Errors: UnusableError for the file, PluginError for a plug-in that gives no Reading."""
        try:
            found = self.read_path(path)
        except (UnusableError, PotstillError, OSError, MemoryError, RecursionError):
            raise
        except Exception as error:
            raise UnusableError(
                "plugin_failed", f"the plug-in {self.loaded.plugin} failed: {described(error)}"
            ) from error
        if not isinstance(found, Reading) or not all(
            isinstance(page, PageText) and all(isinstance(block, str) for block in page.blocks)
            for page in found.pages
        ):
            raise self.loaded.broken("gave no Reading whose pages are texts")
        if not any(block.strip() for page in found.pages for block in page.blocks):
            raise UnusableError("no_text", "the file holds no text")
        return found


def plugin_readers(config: IngestConfig, own: Sequence[str]) -> dict[str, PluginReader]:
    """Suffix -> reader, of those that the recipe names. `own`: suffixes that Potstill reads.

    Errors: PluginError; RecipeError for options that are refused, or a suffix that two read.
    """
    found: dict[str, PluginReader] = {}
    for choice in config.readers:
        loaded = load(GROUP, choice.name, NEEDS)
        reader = PluginReader(loaded, options_of(loaded, choice.options))
        if not reader.suffixes or not all(one.startswith(".") for one in reader.suffixes):
            raise loaded.broken("names no suffixes that begin with a dot")
        for suffix in reader.suffixes:
            if suffix in own:
                raise loaded.broken(f"reads {suffix}, which Potstill reads itself")
            if suffix in found:
                other = found[suffix].loaded.plugin
                raise RecipeError(
                    f"ingest.readers: {loaded.plugin} and {other} both read {suffix}.",
                    "Name one of them.",
                )
            found[suffix] = reader
    return found


@dataclass(frozen=True)
class ReaderHere:
    """A reader that is installed. content: what its files' first bytes may say."""

    name: str
    content: tuple[str, ...]


def readers_here(own: Sequence[str]) -> dict[str, ReaderHere]:
    """Suffix -> reader, of all that are installed, where files are taken in before a recipe names
    one. Left out is what does not work or what two would read: naming it in a recipe says why."""
    found: dict[str, list[ReaderHere]] = {}
    for plugin in installed(GROUP):
        try:
            made = load(GROUP, plugin.name, NEEDS).object
        except PluginError:
            continue
        reader = ReaderHere(plugin.name, tuple(made.content))
        for suffix in made.suffixes:
            found.setdefault(str(suffix).lower(), []).append(reader)
    return {
        suffix: readers[0]
        for suffix, readers in found.items()
        if len(readers) == 1 and suffix.startswith(".") and suffix not in own
    }


def reader_facts(config: IngestConfig, own: Sequence[str]) -> dict[str, str]:
    """The identities of the plug-ins that the recipe names. Errors: as `plugin_readers`."""
    readers = {id(one): one for one in plugin_readers(config, own).values()}
    return {f"plug-in {one.loaded.plugin.name}": one.loaded.identity for one in readers.values()}
