"""Where all pages are made: one template engine, one style sheet, nothing to load from elsewhere.

In: a folder of templates. Out: an environment that escapes every text, knows `style.css` beside
this file, and fails on a name that the page does not have. Knows no page.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(templates: Path) -> Environment:
    """The template engine for the pages in that folder."""
    return Environment(
        loader=FileSystemLoader([templates, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
