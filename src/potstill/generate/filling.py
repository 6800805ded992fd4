"""Puts values into the words of a template: {name} by its value. Knows no template."""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def fill(template: str, **values: str) -> str:
    """Replace {name} by its value in one pass, so that values are never filled in again."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)
