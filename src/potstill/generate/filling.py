"""Puts values into the words of a template: {name} by its value. Knows no template."""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def fill(template: str, **values: str) -> str:
    """Replace {name} by its value in one pass, so that values are never filled in again."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def check(field: str, template: str, needed: set[str], known: set[str]) -> None:
    """Whether a template of a recipe names what it must and nothing else.

    Errors: ValueError with the field's name.
    """
    found = set(PLACEHOLDER.findall(template))
    if missing := sorted(needed - found):
        raise ValueError(f"{field} must contain {{{missing[0]}}}")
    if unknown := sorted(found - known):
        names = ", ".join(f"{{{name}}}" for name in sorted(known))
        raise ValueError(f"{field} contains {{{unknown[0]}}}; it may use {names}")
