"""What a plug-in is written with, and which plug-ins are installed.

    [project.entry-points."potstill.filters"]
    polite = "my_package.filters:POLITE"

An extension point is a group of entry points; what the object must offer is the protocol named
beside it. A recipe names the plug-ins that it uses, and only those are imported. See
docs/guides/plugins.md.

    potstill.readers       ReaderPlugin      ingest.readers: [{name: NAME}]
    potstill.filters       FilterPlugin      curate.filters: [{name: NAME}]
    potstill.divergences   DivergencePlugin  distill.divergence: plugin:NAME
    potstill.teachers      TeacherPlugin     generate.teacher: plugin:NAME or plugin:NAME:MODEL

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from potstill.core.plugins import Plugin, load
from potstill.core.plugins import installed as _installed
from potstill.errors import PluginError

if TYPE_CHECKING:
    from potstill.curate.filter_plugins import FilterPlugin as FilterPlugin
    from potstill.curate.filters import Surroundings as Surroundings
    from potstill.distill.divergence_plugins import DivergencePlugin as DivergencePlugin
    from potstill.inference.base import Reply as Reply
    from potstill.inference.base import Request as Request
    from potstill.inference.base import TextModel as TextModel
    from potstill.inference.teacher_plugins import TeacherPlugin as TeacherPlugin
    from potstill.ingest.content import PageText as PageText
    from potstill.ingest.content import Reading as Reading
    from potstill.ingest.content import UnusableError as UnusableError
    from potstill.ingest.reader_plugins import ReaderPlugin as ReaderPlugin
    from potstill.records import Example as Example
    from potstill.records import Verdict as Verdict

__all__ = [
    "POINTS",
    "DivergencePlugin",
    "Example",
    "FilterPlugin",
    "PageText",
    "Plugin",
    "ReaderPlugin",
    "Reading",
    "Reply",
    "Request",
    "Surroundings",
    "TeacherPlugin",
    "TextModel",
    "UnusableError",
    "Verdict",
    "installed",
    "problem_of",
]

POINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "potstill.readers": ("ingest.readers", ("suffixes", "content", "make")),
    "potstill.filters": ("curate.filters", ("make",)),
    "potstill.divergences": ("distill.divergence", ("rows",)),
    "potstill.teachers": ("generate.teacher", ("identity", "open")),
}
"""Extension point -> the recipe's field that names its plug-ins, and what their objects offer
besides `version`."""

_HOMES = {
    "DivergencePlugin": "potstill.distill.divergence_plugins",
    "Example": "potstill.records",
    "FilterPlugin": "potstill.curate.filter_plugins",
    "PageText": "potstill.ingest.content",
    "ReaderPlugin": "potstill.ingest.reader_plugins",
    "Reading": "potstill.ingest.content",
    "Reply": "potstill.inference.base",
    "Request": "potstill.inference.base",
    "Surroundings": "potstill.curate.filters",
    "TeacherPlugin": "potstill.inference.teacher_plugins",
    "TextModel": "potstill.inference.base",
    "UnusableError": "potstill.ingest.content",
    "Verdict": "potstill.records",
}


def installed() -> list[Plugin]:
    """Every plug-in that is installed, by extension point and name. Imports none of them."""
    return [plugin for group in POINTS for plugin in _installed(group)]


def problem_of(plugin: Plugin) -> str:
    """Import a plug-in and say what is wrong with it; empty if nothing is."""
    try:
        load(plugin.group, plugin.name, POINTS[plugin.group][1])
    except PluginError as error:
        return error.message
    return ""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'potstill.plugins' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
