"""The service learns again: feedback becomes rows, rows a candidate, and a gate says whether it is
better than the student that serves.

    from potstill import open_run
    from potstill.improve import improve, promote, rollback

    run = open_run("quickstart")
    made = improve(run)
    if made.gate["state"] == "passed":
        promote(run, made.run.folder.name)

In: a run and its feedback. Out: candidates, which are ordinary runs, and versions. Knows no HTTP.
Light: a service looks up its version without what training needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from potstill.improve.config import ImproveConfig

if TYPE_CHECKING:
    from potstill.improve.asking import question_of as question_of
    from potstill.improve.promotion import promote as promote
    from potstill.improve.promotion import rollback as rollback
    from potstill.improve.run import Improved as Improved
    from potstill.improve.run import Prepared as Prepared
    from potstill.improve.run import improve as improve
    from potstill.improve.run import prepare as prepare
    from potstill.improve.trial import compare_traffic as compare_traffic
    from potstill.run_folder import versions_of as versions_of

__all__ = [
    "ImproveConfig",
    "Improved",
    "Prepared",
    "compare_traffic",
    "improve",
    "prepare",
    "promote",
    "question_of",
    "rollback",
    "versions_of",
]
_HOMES = {
    "Improved": "run",
    "Prepared": "run",
    "compare_traffic": "trial",
    "improve": "run",
    "prepare": "run",
    "promote": "promotion",
    "question_of": "asking",
    "rollback": "promotion",
    "versions_of": "promotion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill.improve' has no attribute {name!r}")
    return getattr(importlib.import_module(f"potstill.improve.{_HOMES[name]}"), name)
