"""Search over a recipe's fields: trials of whole distillations, poor ones given up early.

    from potstill.tune import Study, run_study

    finished = run_study(Study.load("quickstart", trials=12))
    print(finished.best[0].values, finished.recipes[0])

Light: Optuna and the page's template engine come in when a study runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from potstill.tune.config import StudyConfig
from potstill.tune.study import Study, builtin_studies

if TYPE_CHECKING:
    from potstill.tune.search import Finished as Finished
    from potstill.tune.search import read_study as read_study
    from potstill.tune.search import run_study as run_study
    from potstill.tune.trials import Trial as Trial

__all__ = [
    "Finished",
    "Study",
    "StudyConfig",
    "Trial",
    "builtin_studies",
    "read_study",
    "run_study",
]


def __getattr__(name: str) -> Any:
    import importlib

    homes = {"Finished": "search", "read_study": "search", "run_study": "search", "Trial": "trials"}
    if name not in homes:
        raise AttributeError(f"module 'potstill.tune' has no attribute {name!r}")
    from potstill.core.extras import require

    require("optuna", "tune", "A search")
    return getattr(importlib.import_module(f"potstill.tune.{homes[name]}"), name)
