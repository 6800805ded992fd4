"""Plug-ins: what other packages add, found by their entry points.

In: an extension point (the name of an entry point group) and a plug-in's name. Out: the plug-in's
object, its package and version; or one line that says what is wrong with it. Looking for plug-ins
imports none of them: only one that is asked for by name is imported. Knows nothing of what any kind
of plug-in does; that stands with the stage that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from potstill.errors import PluginError, RecipeError

PREFIX = "plugin:"
"""How a recipe says that a name is a plug-in's, where names of Potstill's own stand beside it."""
NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
PluginReference = Annotated[str, Field(pattern=f"^{PREFIX}{NAME}$")]


class PluginChoice(BaseModel):
    """A plug-in that a recipe names, and what it is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="The name of its entry point.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="What the plug-in is told; it says what it takes."
    )


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is installed. It may not be imported yet, and may not work."""

    group: str
    name: str
    package: str
    package_version: str
    value: str
    """Where its object is: "module:name"."""

    def __str__(self) -> str:
        return f"{self.name} ({self.package} {self.package_version})"


@dataclass(frozen=True)
class Loaded:
    """A plug-in and its imported object."""

    plugin: Plugin
    object: Any

    @property
    def identity(self) -> str:
        """What a result depends on: package, its version, and the version the plug-in declares."""
        found = self.plugin
        return f"{found.package} {found.package_version}, version {self.object.version}"

    def broken(self, what: str) -> PluginError:
        """The error for a plug-in that does not do what it must. `what`: a whole sentence's end."""
        return PluginError(
            f"The plug-in {self.plugin.name} of the package {self.plugin.package} "
            f"{self.plugin.package_version} ({self.plugin.group}) {what}.",
            "Tell its author, or leave it out of the recipe.",
        )


def installed(group: str) -> list[Plugin]:
    """The plug-ins for an extension point, by name; names that two packages give stand twice."""
    found = {_plugin(one) for one in entry_points(group=group)}
    return sorted(found, key=lambda one: (one.name, one.package))


def load(group: str, name: str, needs: Sequence[str] = ()) -> Loaded:
    """Import the plug-in of that name. `needs`: attributes that its object must have, besides
    `version`.

    Errors: PluginError if there is none of that name, two packages give it, it cannot be imported,
    or it lacks what it needs. Each names the package.
    """
    return _load(group, name, tuple(needs))


def options_of(loaded: Loaded, options: Mapping[str, Any]) -> Any:
    """What the plug-in makes of its options: the result of its `make(options)`.

    Errors: RecipeError for options that it refuses (by a ValueError or TypeError), PluginError for
    any other failure.
    """
    try:
        made = loaded.object.make(dict(options))
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"The plug-in {loaded.plugin} does not take the options {dict(options)}: "
            f"{_first_line(error)}."
        ) from error
    except Exception as error:
        raise loaded.broken(f"failed to begin: {described(error)}") from error
    if not callable(made):
        raise loaded.broken("made nothing that can be called")
    return made


def described(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no word"])[0][:200].rstrip(".")


@cache
def _load(group: str, name: str, needs: tuple[str, ...]) -> Loaded:
    entries = {_plugin(one): one for one in entry_points(group=group, name=name)}
    if not entries:
        known = ", ".join(sorted({one.name for one in installed(group)}))
        raise PluginError(
            f"There is no plug-in {name} for {group}.",
            f"Installed are: {known}."
            if known
            else "None is installed; `potstill plugins` lists "
            "them. Install the package that brings it.",
        )
    if len(entries) > 1:
        packages = " and ".join(sorted(f"{one.package} {one.package_version}" for one in entries))
        raise PluginError(
            f"Two packages bring a plug-in {name} for {group}: {packages}.",
            "Uninstall one of them.",
        )
    ((plugin, entry),) = entries.items()
    try:
        found = entry.load()
    # A package of somebody else may fail in any way, SystemExit among them.
    except (Exception, SystemExit) as error:
        raise Loaded(plugin, None).broken(f"cannot be imported: {described(error)}") from error
    loaded = Loaded(plugin, found)
    for one in ("version", *needs):
        if not hasattr(found, one):
            raise loaded.broken(f"has no {one}")
    if not isinstance(found.version, str | int) or not str(found.version).strip():
        raise loaded.broken("declares a version that is neither text nor a whole number")
    return loaded


def _plugin(entry: EntryPoint) -> Plugin:
    distribution = entry.dist
    package = distribution.name if distribution is not None else "unknown"
    version = distribution.version if distribution is not None else "0"
    return Plugin(entry.group, entry.name, package, version, entry.value)
