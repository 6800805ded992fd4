"""Packages with plug-ins, as pip would leave them: a folder with the code and its metadata.

In: a folder. Out: the folder, to be put on the path. Not a test.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill.core import plugins

EXAMPLE = Path(__file__).parent / "example_plugin"


def write_package(
    folder: Path, name: str, version: str, points: Mapping[str, Mapping[str, str]]
) -> Path:
    """The metadata of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in points.items():
        lines += [f"[{group}]", *(f"{one} = {value}" for one, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def write_example(folder: Path) -> Path:
    """The example package, from its own pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    shutil.copytree(EXAMPLE / "src" / "potstill_example", folder / "potstill_example")
    return write_package(folder, project["name"], project["version"], project["entry-points"])


@contextmanager
def on_the_path(*folders: Path) -> Iterator[None]:
    """Within it, this process and those that it starts find the packages in the folders."""
    places = [str(one) for one in folders]
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*places, *sys.path])
        inherited = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([*places, *filter(None, [inherited])]))
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    """What was loaded, as a new process has not."""
    plugins._load.cache_clear()
    for name in list(sys.modules):
        if name.startswith(("potstill_example", "broken_plugin")):
            del sys.modules[name]
