"""Which files a recipe's sources name, and that none of them lies outside the project.

In: source texts (file, folder, glob, `sample:NAME`) and the project folder.
Out: `SourceFile`s in a stable order, each once. Reads no file's content.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from potstill.errors import AbsentError, InputError
from potstill.sample import sample_path

SAMPLE = "sample:"
MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class SourceFile:
    """One file to read. `name` is what people see: relative to the project, or `sample:...`."""

    name: str
    path: Path


def find_sources(sources: list[str], project: Path) -> list[SourceFile]:
    """Every file that `sources` name, in the order named, folders and globs sorted, each once.

    Hidden files (a leading dot) are left out of folders and globs.
    Errors: AbsentError for a missing source, an empty folder or glob; InputError for a path outside
    the project.
    """
    project = project.resolve()
    found: dict[Path, SourceFile] = {}
    for source in sources:
        try:
            for file in _files_of(source.strip(), project):
                found.setdefault(file.path, file)
        except (OSError, ValueError, RuntimeError) as error:  # too long, or of no such user
            raise InputError(
                f"The source {source[:80]!r} (ingest.sources) is no path that this system takes: "
                f"{getattr(error, 'strerror', None) or error}.",
                "Paths start at the project folder.",
            ) from error
    return list(found.values())


def _files_of(source: str, project: Path) -> Iterator[SourceFile]:
    if source.startswith(SAMPLE):
        yield SourceFile(source, sample_path(source.removeprefix(SAMPLE)))
        return
    path = project / Path(source).expanduser()
    if path.is_dir():
        _inside(path, project, source)
        files = list(_walk(path, project, source, set()))
        nothing = f"The folder {source!r} (ingest.sources) holds no file."
    elif path.exists() or path.is_symlink():
        files = [path]
        nothing = ""
    elif MAGIC & set(source):
        files = list(_matches(path, project, source))
        nothing = f"No file matches {source!r} (ingest.sources) below {project}."
    else:
        raise AbsentError(
            f"The source {source!r} (ingest.sources) does not exist below {project}.",
            f"{_nearest(path)}Paths start at the project folder.",
        )
    if not files:
        raise AbsentError(nothing, "Name a file, a folder or a glob that holds documents.")
    for file in files:
        real = _inside(file, project, source)
        if not real.exists():
            raise InputError(f"{file} is a link to a file that does not exist.", "Mend the link.")
        yield SourceFile(_name(file, real, project), real)


def _inside(path: Path, project: Path, source: str) -> Path:
    """The real path, links followed; refused when it leaves the project."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"The source {source!r} cannot be followed: {error}.") from error
    if not real.is_relative_to(project):
        raise InputError(
            f"The source {source!r} leaves the project folder {project}: it leads to {real}.",
            "Copy the file into the project, or choose a wider project folder with --project.",
        )
    return real


def _walk(folder: Path, project: Path, source: str, seen: set[Path]) -> Iterator[Path]:
    """Files below `folder`, sorted; linked folders are followed once and must stay inside."""
    real = _inside(folder, project, source)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, project, source, seen)
        else:
            yield entry


def _matches(pattern: Path, project: Path, source: str) -> Iterator[Path]:
    # Not Path.glob: it takes no absolute pattern.
    for match in sorted(glob.glob(str(pattern), recursive=True)):  # noqa: PTH207
        path = Path(match)
        if path.is_file() or path.is_symlink():
            yield path
        else:
            _inside(path, project, source)


def _name(path: Path, real: Path, project: Path) -> str:
    """The path below the project as the recipe would name it; the real one if `..` crept in."""
    if path.is_relative_to(project) and ".." not in path.parts:
        return path.relative_to(project).as_posix()
    return real.relative_to(project).as_posix()


def _nearest(path: Path) -> str:
    """A suggestion when a file of nearly the same name stands beside the missing one."""
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    close = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? " if close else ""
