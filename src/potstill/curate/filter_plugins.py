"""Filters of rows by plug-ins (`potstill.filters`), after those of `filters.py`.

In: a CurateConfig. Out: checks that judge a row as ours do, each reason under the plug-in's name.
Knows no filter by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from potstill.core.plugins import Loaded, described, load, options_of
from potstill.curate.config import CurateConfig
from potstill.curate.filters import Check, Surroundings, reject
from potstill.errors import PotstillError
from potstill.records import Example, Verdict

GROUP = "potstill.filters"


class FilterPlugin(Protocol):
    """What an entry point of `potstill.filters` names."""

    version: str
    """Raise it when rows would be judged differently: the stage then runs again."""

    def make(self, options: Mapping[str, Any]) -> Check:
        """A function from a row and its surroundings to a `Verdict`; the same for the same row.

        Errors: ValueError for options that it does not take.
        """
        ...


def plugin_checks(config: CurateConfig) -> tuple[Check, ...]:
    """The filters that the recipe names, in its order. Errors: PluginError, RecipeError."""
    found = []
    for choice in config.filters:
        loaded = load(GROUP, choice.name, ("make",))
        found.append(_guarded(loaded, options_of(loaded, choice.options)))
    return tuple(found)


def filter_facts(config: CurateConfig) -> dict[str, str]:
    """The identities of the plug-ins that the recipe names. Errors: as `plugin_checks`."""
    plugin_checks(config)
    return {
        f"plug-in {one.name}": load(GROUP, one.name, ("make",)).identity for one in config.filters
    }


def _guarded(loaded: Loaded, check: Check) -> Check:
    """The check; its failure names its package, and its reasons cannot be taken for ours."""

    def judged(example: Example, around: Surroundings) -> Verdict:
        try:
            verdict = check(example, around)
        except PotstillError:
            raise
        except Exception as error:
            raise loaded.broken(f"failed on row {example.id}: {described(error)}") from error
        if not isinstance(verdict, Verdict):
            raise loaded.broken(f"gave no verdict on row {example.id}")
        if verdict.keep:
            return verdict
        return reject(f"{loaded.plugin.name}.{verdict.reason or 'rejected'}", verdict.detail)

    return judged
