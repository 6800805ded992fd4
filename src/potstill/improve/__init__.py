"""The service learns again: feedback becomes rows, rows a candidate, and a gate says whether it is
better than the student that serves.

    from potstill import open_run
    from potstill.improve import improve, promote, rollback

    run = open_run("quickstart")
    made = improve(run)
    if made.gate["state"] == "passed":
        promote(run, made.run.folder.name)

In: a run and its feedback. Out: candidates, which are ordinary runs, and versions. Knows no HTTP.
"""

from potstill.improve.config import ImproveConfig
from potstill.improve.promotion import promote, rollback, version_run, versions_of
from potstill.improve.run import Improved, Prepared, improve, prepare, question_of
from potstill.improve.trial import compare_traffic

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
    "version_run",
    "versions_of",
]
