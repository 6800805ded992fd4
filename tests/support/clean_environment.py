"""An environment as a user has it who installed Potstill with certain extras, made offline.

In: a folder, extras. Out: the Python of a new virtual environment that holds what these extras of
pyproject.toml bring, with all that they need in turn, linked from the environment of the tests,
and nothing else. Potstill itself is not in it. What is not installed here is left out: the caller
is told by an error if that is a package that Potstill asks for itself.
"""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def make_environment(folder: Path, extras: tuple[str, ...] = ()) -> Path:
    """Create the environment; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    packages = next(folder.glob("[Ll]ib*/**/site-packages"))
    for distribution in distributions(extras).values():
        for entry in _entries(distribution):
            target = packages / entry
            if not target.exists():
                target.symlink_to(_home(distribution) / entry)
    return scripts / ("python.exe" if os.name == "nt" else "python")


def distributions(extras: tuple[str, ...] = ()) -> dict[str, importlib.metadata.Distribution]:
    """What Potstill with these extras brings, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(_own(extras))
    direct = {canonicalize_name(one.name) for one in waiting}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            found[name] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if name in direct:
                raise
            continue  # such as a wheel for another system, whose marker says so elsewhere
        for line in found[name].requires or ():
            needed = Requirement(line)
            if _applies(needed, requirement.extras):
                waiting.append(needed)
    return found


def size_bytes(extras: tuple[str, ...] = ()) -> int:
    """Size on the disk of what they bring, without compiled caches."""
    return sum(
        path.stat().st_size
        for distribution in distributions(extras).values()
        for file in distribution.files or ()
        if file.suffix != ".pyc" and (path := Path(str(file.locate()))).is_file()
    )


def _own(extras: tuple[str, ...]) -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    for line in lines:
        requirement = Requirement(line)
        if _applies(requirement, set()):
            yield requirement


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": one}) for one in (extras or {""}))


def _home(distribution: importlib.metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file("")))


def _entries(distribution: importlib.metadata.Distribution) -> set[str]:
    """Names in site-packages that belong to a distribution."""
    first = {file.parts[0] for file in distribution.files or ()}
    return first - {"..", "__pycache__", ".", "bin", "Scripts"}
