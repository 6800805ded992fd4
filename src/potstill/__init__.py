"""Potstill distils a large language model into a small one that knows your domain.

    import potstill

    recipe = potstill.Recipe.load("quickstart", ["distill.epochs=2"])
    for step in potstill.plan(recipe):
        print(step.name, step.action, step.reason)
    finished = potstill.run(recipe)
    print(finished.report["models"]["distilled"]["metrics"]["kl"])

The public face; nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.models.load import load_model as load_model
    from potstill.models.spans.reader import SpanReader as SpanReader
    from potstill.pipeline import Run as Run
    from potstill.pipeline import open_run as open_run
    from potstill.pipeline import plan as plan
    from potstill.pipeline import run as run
    from potstill.recipe import Recipe as Recipe

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "Run",
    "SpanReader",
    "__version__",
    "load_model",
    "open_run",
    "plan",
    "run",
]

_HOMES = {
    "Recipe": "potstill.recipe",
    "Run": "potstill.pipeline",
    "SpanReader": "potstill.models.spans.reader",
    "load_model": "potstill.models.load",
    "open_run": "potstill.pipeline",
    "plan": "potstill.pipeline",
    "run": "potstill.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'potstill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
