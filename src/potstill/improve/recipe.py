"""The recipe of an improvement: the run's own, from the student that serves now.

In: a run's resolved recipe, the current student, a name. Out: a recipe as plain values, which any
`potstill run` could take. Knows no feedback and starts nothing.

Ingest and generate stay as they are, so their results are reused. Curation takes the prepared rows,
training begins with the current student and leaves out the baseline, and the evaluation calls that
student `undistilled`: what training set out from. The teacher is the one that taught the run,
corrected if it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def improved(
    recipe: Mapping[str, Any],
    *,
    name: str,
    student: str,
    teacher: str,
    rows: str,
    mask: bool,
    parent: str,
) -> dict[str, Any]:
    """The recipe of an improvement.

    recipe: `run.json`'s. student: folder of the current one. teacher: the one that taught the run.
    rows: the prepared rows, below the project folder. mask: keep no personal data.
    """
    made = copy.deepcopy(dict(recipe))
    made["name"] = name
    made["description"] = f"{parent} improved from feedback, from the student that served it."
    made["curate"] |= {"prepared": rows, "typo_variants": 0, "edits": ""}
    if mask:
        made["curate"]["personal_data"] = "mask"
    for section in ("distill", "evaluate", "export"):
        if made[section].get("teacher") == recipe["correct"]["teacher"]:
            made[section]["teacher"] = teacher
    for one in made["distill"].get("teachers", []):
        if one.get("teacher") == recipe["correct"]["teacher"]:
            one["teacher"] = teacher
    made["correct"] = {"method": "none", "template": recipe["correct"].get("template", "")}
    made["distill"]["student"] = {"model": student}
    if "assistants" in made["distill"]:
        made["distill"]["assistants"] = []
    made["distill"]["baseline"] = False  # the gate compares with the student that serves
    made["evaluate"]["max_examples"] = None  # the rows themselves are those that were measured
    return made
